"""A disk that fails when it is told to."""

import errno
import os
from pathlib import Path
from typing import Final

from sinks.files import Disk

_ERRORS: Final = {"enospc": errno.ENOSPC, "eio": errno.EIO}


class FaultyDisk(Disk):
    """Fails the next operations of the kinds it was told: each fault once."""

    def __init__(self) -> None:
        self._faults: list[str] = []

    def fail_next(self, *faults: str) -> None:
        """`short`, `enospc` and `eio` are writes; `fsync enospc`, `truncate eio`, `link eio` ..."""
        self._faults += faults

    def clear(self) -> None:
        """Fail no more."""
        self._faults.clear()

    def write(self, fd: int, *pieces: bytes) -> int:
        data = b"".join(pieces)
        if self._takes("short"):
            return os.write(fd, data[: len(data) // 2])
        for name in _ERRORS:
            if self._takes(name):
                os.write(fd, data[: len(data) // 3])
                raise _error(name)
        return super().write(fd, *pieces)

    def fsync(self, fd: int) -> None:
        self._maybe("fsync")
        super().fsync(fd)

    def truncate(self, fd: int, size: int) -> None:
        self._maybe("truncate")
        super().truncate(fd, size)

    def link(self, source: Path, target: Path) -> None:
        self._maybe("link")
        super().link(source, target)

    def _maybe(self, operation: str) -> None:
        for name in _ERRORS:
            if self._takes(f"{operation} {name}"):
                raise _error(name)

    def _takes(self, fault: str) -> bool:
        if fault not in self._faults:
            return False
        self._faults.remove(fault)
        return True


def _error(name: str) -> OSError:
    return OSError(_ERRORS[name], os.strerror(_ERRORS[name]))
