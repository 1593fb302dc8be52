"""Can this machine run untrusted code? Asked by workers at start, before they take work."""

import time
from dataclasses import dataclass
from typing import Final

from workers.sandbox.host import Mode, host
from workers.sandbox.limits import Limits, SandboxError, SandboxUnavailable
from workers.sandbox.run import run_code

#: A confined program that can do this has an interpreter, a place to write, and no network.
_CHECK: Final = """
import os, socket
with open("written", "w") as file:
    file.write("x")
try:
    socket.create_connection(("192.0.2.1", 9), timeout=1)
except OSError as error:
    print(os.getuid(), error.errno)
"""
_CHECK_LIMITS: Final = Limits(wall_s=20.0)

_HOW: Final = {
    "root": "run the worker as an ordinary user, or a container with --cap-add SYS_ADMIN "
    "--security-opt seccomp=unconfined --security-opt apparmor=unconfined",
    "root-userns": "allow user namespaces (sysctl user.max_user_namespaces, "
    "kernel.apparmor_restrict_unprivileged_userns=0; for containers --security-opt "
    "seccomp=unconfined), and install Python where every user can read it",
    "user": "allow user namespaces (sysctl user.max_user_namespaces=15000, "
    "kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0; for "
    "containers --security-opt seccomp=unconfined --security-opt systempaths=unconfined)",
}


@dataclass(frozen=True, slots=True)
class Available:
    """Sandboxes work here."""

    mode: Mode
    seconds: float
    """What the trial took."""


@dataclass(frozen=True, slots=True)
class Unavailable:
    """No untrusted code may run here."""

    reason: str
    how_to_get_it: str


async def probe() -> Available | Unavailable:
    """Run a small program in a sandbox, and look whether it was confined."""
    try:
        mode = host().mode
    except SandboxUnavailable as error:
        reason, _, how = str(error).partition("; ")
        return Unavailable(reason, how or "use a machine that has it")
    started = time.monotonic()
    try:
        result = await run_code(_CHECK, limits=_CHECK_LIMITS)
    except (SandboxError, OSError) as error:
        return Unavailable(str(error), _HOW[mode])
    if not result.ok or not result.stdout.strip():
        text = (result.stderr or result.stdout)[-500:].decode(errors="replace").strip()
        return Unavailable(f"a trial program failed: {text or result.killed_by}", _HOW[mode])
    return Available(mode, time.monotonic() - started)
