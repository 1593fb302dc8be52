"""What this machine offers for sandboxes: facts, read once per process, none of them secret."""

import os
import platform
import shutil
import site
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final, Literal

from workers.sandbox import seccomp
from workers.sandbox.limits import SandboxUnavailable

Mode = Literal["root", "root-userns", "user"]
"""How the sandbox is entered: as root, which drops to an unused uid inside; by an unused uid that
makes a user namespace; by ourselves, making a user namespace."""

_CAP_SYS_ADMIN: Final = 21
#: systemd's table of uids calls this range unused; see also `_uids`.
_FIRST_UID: Final = 0x78000000
_UIDS: Final = 0x8000
#: For containers that map 65536 uids: above people and services, below nobody.
_SMALL_FIRST_UID: Final = 40000
_SMALL_UIDS: Final = 20000
_NEEDED: Final = ("--json-status-fd", "--seccomp", "--perms", "--size", "--clearenv", "--chmod")


@dataclass(frozen=True, slots=True)
class Host:
    """Paths and abilities that a sandbox is built from."""

    bwrap: str
    prlimit: str
    setpriv: str
    mode: Mode
    uids: range
    """Uids that nobody uses; empty when we aren't root."""
    disable_userns: bool
    python: str
    """The interpreter inside the sandbox, at its own path."""
    read_only: tuple[Path, ...]
    """Directories outside of /usr that the interpreter needs."""
    hidden: tuple[Path, ...]
    """Directories inside of these or /usr that stay empty: our own code lies there, with the
    tasks' answers, and third-party packages would triple the start-up time."""


@cache
def host() -> Host:
    """Look at this machine. Raises SandboxUnavailable with what is missing and how to get it."""
    if sys.platform != "linux" or not seccomp.supported():
        what = f"{sys.platform} on {platform.machine()}"
        raise SandboxUnavailable(f"sandboxes need Linux on x86_64 or aarch64, this is {what}")
    bwrap = _tool("bwrap", "bubblewrap")
    options = _options(bwrap)
    missing = [option for option in _NEEDED if option not in options]
    if missing:
        lacks = ", ".join(missing)
        raise SandboxUnavailable(f"{bwrap} is too old: it lacks {lacks}; 0.8 or newer is needed")
    mode = _mode()
    return Host(
        bwrap=bwrap,
        prlimit=_tool("prlimit", "util-linux"),
        setpriv=_tool("setpriv", "util-linux") if mode != "user" else "",
        mode=mode,
        uids=_uids(Path("/proc/self/uid_map").read_text("ascii")) if mode != "user" else range(0),
        disable_userns="--disable-userns" in options,
        python=os.path.realpath(sys.executable),
        read_only=_interpreter_directories(),
        hidden=_hidden(_interpreter_directories()),
    )


def _tool(name: str, package: str) -> str:
    path = shutil.which(name, path="/usr/bin:/usr/sbin:/bin:/sbin:/usr/local/bin")
    if path is None:
        raise SandboxUnavailable(f"{name} is missing; get it with: apt-get install {package}")
    return path


def _options(bwrap: str) -> str:
    found = subprocess.run([bwrap, "--help"], capture_output=True, text=True, env={}, timeout=10)
    return found.stdout + found.stderr


def _mode() -> Mode:
    if os.geteuid() != 0:
        return "user"
    status = Path("/proc/self/status").read_text("ascii")
    effective = next(line for line in status.splitlines() if line.startswith("CapEff:"))
    can_mount = int(effective.split()[1], 16) >> _CAP_SYS_ADMIN & 1
    return "root" if can_mount else "root-userns"


def _uids(uid_map: str) -> range:
    """Unused uids among those that this user namespace maps."""
    mapped = [(int(first), int(count)) for first, _, count in map(str.split, uid_map.splitlines())]
    for start, length in ((_FIRST_UID, _UIDS), (_SMALL_FIRST_UID, _SMALL_UIDS)):
        if any(first <= start and start + length <= first + count for first, count in mapped):
            return range(start, start + length)
    raise SandboxUnavailable(
        "this root user has no unused uid to give to untrusted code (see /proc/self/uid_map); "
        "run the worker as an ordinary user"
    )


def _interpreter_directories() -> tuple[Path, ...]:
    prefixes = {Path(os.path.realpath(p)) for p in (sys.base_prefix, sys.base_exec_prefix)}
    return tuple(sorted(p for p in prefixes if not p.is_relative_to("/usr")))


def _hidden(read_only: tuple[Path, ...]) -> tuple[Path, ...]:
    """What we import from, beside the standard library, as far as a sandbox would show it."""
    prefixes = [sys.base_prefix, sys.base_exec_prefix]
    imported = [*sys.path, *site.getsitepackages(prefixes), "/usr/lib/python3/dist-packages"]
    if sys.prefix != sys.base_prefix:
        imported.append(sys.prefix)
    found = {Path(os.path.realpath(p)) for p in [*imported, "/usr/src"] if os.path.isdir(p)}
    visible = [Path("/usr"), *read_only]
    library = Path(os.path.realpath(sysconfig.get_path("stdlib")))
    ours = {p for p in found if not library.is_relative_to(p) and p != library / "lib-dynload"}
    inside = {p for p in ours if any(v in p.parents for v in visible)}
    return tuple(sorted(p for p in inside if not inside.intersection(p.parents)))
