"""What the processes of a sandbox use right now, read through its own /proc.

That /proc lists exactly the processes of the sandbox, however they forked, and these cannot leave.
"""

import os
from dataclasses import dataclass
from typing import Final

_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Usage:
    """All processes together. The first one, which waits for the others, is bwrap's; but where it
    has the program's uid, the program could make it its own."""

    cpu_s: float
    """Includes processes that have ended."""
    memory_bytes: int
    """Resident; what several processes share counts in each."""
    pids: tuple[int, ...]
    """As the sandbox sees them, the first one included."""
    files: int
    """In the places where it may write."""
    sockets: int
    """Of its network namespace: also those on their way in a message, which no process holds."""


def read_usage(first_pid: int) -> Usage | None:
    """None when the sandbox isn't there yet, or no longer, or when we may not look."""
    proc = f"/proc/{first_pid}/root/proc"
    try:
        if os.stat(proc).st_dev == os.stat("/proc").st_dev:
            return None  # bwrap hasn't left our own root yet: these would be everybody's processes
        pids = tuple(int(name) for name in os.listdir(proc) if name.isdecimal())
    except OSError:
        return None
    cpu_s, memory = 0.0, 0
    for pid in pids:
        cpu_s += _cpu_s(f"{proc}/{pid}/stat")
        memory += _resident_bytes(f"{proc}/{pid}/statm")
    files = sum(map(_files, _writable(first_pid)))
    return Usage(cpu_s, memory, pids, files, _sockets(f"/proc/{first_pid}/net/sockstat"))


def shared_once_bytes(first_pid: int, usage: Usage) -> int:
    """Memory with shared pages counted once; slower. Falls back on what `usage` says."""
    proc = f"/proc/{first_pid}/root/proc"
    sizes = [_proportional_bytes(f"{proc}/{pid}/smaps_rollup") for pid in usage.pids]
    known = [size for size in sizes if size is not None]
    return sum(known) if len(known) == len(sizes) else usage.memory_bytes


def _read(path: str) -> str:
    """Empty when the process has ended meanwhile."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _writable(first_pid: int) -> tuple[str, str]:
    return f"/proc/{first_pid}/root/tmp", f"/proc/{first_pid}/root/dev/shm"


def _files(path: str) -> int:
    try:
        found = os.statvfs(path)
    except OSError:
        return 0
    return found.f_files - found.f_ffree


def _sockets(path: str) -> int:
    """Its first line is `sockets: used 3`."""
    words = _read(path).partition("\n")[0].split()
    return int(words[2]) if len(words) == 3 else 0


def _cpu_s(path: str) -> float:
    # the name, in brackets, is the program's choice; fields 14 to 17 are utime .. cstime
    fields = _read(path).rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / _TICKS


def _resident_bytes(path: str) -> int:
    fields = _read(path).split()
    return int(fields[1]) * _PAGE if fields else 0


def _proportional_bytes(path: str) -> int | None:
    try:
        with open(path, encoding="ascii") as file:
            lines = file.read().splitlines()
    except ProcessLookupError:
        return 0
    except OSError:
        return None if os.path.exists(path) else 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)
