"""What tests of the sandbox need from the machine: bubblewrap, and a look at its processes."""

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from workers.sandbox import SandboxResult

REPOSITORY = Path(__file__).resolve().parents[2]
#: Of an ordinary user that doesn't exist.
STRANGER = 61234
#: Hostile code: it opens ever more sockets, some of which no process holds any more.
SOCKETS = """
import os, socket, time
held = [socket.socketpair() for _ in range(10)]
a, b = socket.socketpair()
for _ in range(10):
    one, other = socket.socketpair()
    socket.send_fds(a, [b'x'], [one.fileno(), other.fileno()])  # held by no process any more
    one.close(); other.close()
time.sleep(20)
"""


def install_bubblewrap() -> None:
    """Get it if we are root and it is missing; tests then say what is wrong, if anything is."""
    if shutil.which("bwrap") is None and os.geteuid() == 0:
        subprocess.run(["apt-get", "install", "-y", "-qq", "bubblewrap"], check=False, timeout=90)


def as_stranger(code: str, *around: str) -> "subprocess.CompletedProcess[str]":
    """Run Python with our packages as an ordinary user, inside of the command `around`."""
    drop = ["setpriv", f"--reuid={STRANGER}", f"--regid={STRANGER}", "--clear-groups"]
    user = [*drop, "--inh-caps=-all", "--"] if os.geteuid() == 0 else []
    return subprocess.run(
        [*user, *around, _public_python(), "-B", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        cwd="/",
        env={"PYTHONPATH": str(REPOSITORY), "PATH": os.defpath, "LANG": "C.UTF-8"},
    )


def text(result: SandboxResult) -> str:
    """What a program wrote that nobody killed."""
    assert result.killed_by is None, result
    return result.stdout.decode()


async def eventually(condition: Callable[[], object], deadline_s: float = 20.0) -> None:
    """Wait for what only the process table shows."""
    async with asyncio.timeout(deadline_s):
        while True:
            if condition():
                return
            await asyncio.sleep(0.01)


def processes_with(marker: str) -> list[int]:
    """Pids of this machine whose command line holds the marker."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if marker.encode() in command:
                found.append(int(entry.name))
    return found


def zombies() -> list[int]:
    """Children of ours that ended and that nobody waited for."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text("utf-8").rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if (state, int(parent)) == ("Z", os.getpid()):
            found.append(int(path.parent.name))
    return found


def _public_python() -> str:
    """An interpreter that every user can read: root's own often lies in a closed home."""
    ours = Path(os.path.realpath(sys.executable))
    closed = any(not parent.stat().st_mode & 0o005 for parent in ours.parents)
    return "/usr/bin/python3" if closed else str(ours)
