"""What a sandboxed program may use, and what its run says afterwards."""

from dataclasses import dataclass
from typing import Final, Literal

KilledBy = Literal["timeout", "cpu", "memory", "output", "processes", "files", "sockets"]
"""The limit that ended a program; None when it ended by itself."""

_MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one run; every one of them is enforced from outside of the program."""

    wall_s: float = 10.0
    """Seconds from start to kill, sleeping included."""
    cpu_s: float = 10.0
    """Seconds of processor time, all processes together."""
    memory_bytes: int = 512 * _MIB
    """Of each process as address space, so that a program sees its allocation fail; and of all
    processes together as used memory, which kills."""
    processes: int = 32
    """Processes and threads alive at once; starting another one fails."""
    open_files: int = 256
    """Of each process."""
    sockets: int = 64
    """Of all processes together: each can hold megabytes that only the kernel knows of."""
    file_bytes: int = 64 * _MIB
    """The largest single file."""
    disk_bytes: int = 64 * _MIB
    """Of everything in /tmp, and again in /dev/shm. Counts in addition to `memory_bytes`."""
    files: int = 10_000
    """In /tmp and /dev/shm together; also empty ones take the kernel's memory."""
    output_bytes: int = _MIB
    """Standard output and error together; the rest is dropped, and the program killed."""


DEFAULT_LIMITS: Final = Limits()


@dataclass(frozen=True, slots=True)
class SandboxResult:
    """How a program ended, and what it wrote. The output is untrusted bytes."""

    exit_code: int
    """The program's own; 128 + n when signal n ended it; 137 when a limit did."""
    stdout: bytes
    stderr: bytes
    truncated: bool
    """There was more output than `Limits.output_bytes`."""
    killed_by: KilledBy | None
    seconds: float
    """Wall clock, from start to the end of the last process."""

    @property
    def ok(self) -> bool:
        """The program ended by itself, with exit code 0."""
        return self.exit_code == 0 and self.killed_by is None


class SandboxError(Exception):
    """The sandbox itself failed; says nothing about the program. Worth another try elsewhere."""


class SandboxUnavailable(SandboxError):
    """This machine can't run untrusted code safely; the text says why and what helps."""
