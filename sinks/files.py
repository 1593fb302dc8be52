"""Durable bytes: the few operations whose order decides what a crash leaves behind."""

import errno
import fcntl
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from sinks.base import OutputBroken, OutputFull, OutputRefused

#: No room, for whatever reason: disk, quota, or the process's limit on a file's size.
FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_BLOCK: Final = 1 << 16
_MOST_PIECES: Final = os.sysconf("SC_IOV_MAX")


class Disk:
    """The system calls that can fail; tests put one in that does."""

    def write(self, fd: int, *pieces: bytes) -> int:
        """Of a large batch, joining the pieces first would cost more than writing them."""
        return os.writev(fd, pieces if len(pieces) <= _MOST_PIECES else (b"".join(pieces),))

    def fsync(self, fd: int) -> None:
        os.fsync(fd)

    def truncate(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)

    def link(self, source: Path, target: Path) -> None:
        os.link(source, target)

    def remove(self, path: Path) -> None:
        """Nothing is there afterwards, whoever removed it."""
        path.unlink(missing_ok=True)

    def fsync_directory(self, path: Path) -> None:
        """Make names in a directory durable."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self.fsync(fd)
        finally:
            os.close(fd)


def lock(path: Path) -> int:
    """Create and open a file for this process alone. Raises OutputRefused."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    except OSError as e:
        raise OutputRefused(f"{path}: can't be written: {e.strerror}") from e
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        os.close(fd)
        raise OutputRefused(
            f"{path}: another process is writing this output (or the filesystem can't lock: "
            f"{e.strerror}); end it, or choose another output"
        ) from e
    if not os.fstat(fd).st_nlink:  # its owner removed it while we waited at the door
        os.close(fd)
        raise OutputRefused(f"{path}: was removed at this moment; run the command again")
    return fd


class AppendFile:
    """A locked file of lines that only grows, by whole batches."""

    def __init__(self, path: Path, disk: Disk) -> None:
        self.path = path
        self._disk = disk
        self._fd = lock(path)
        self._size = os.fstat(self._fd).st_size

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Number (from 1) and bytes of each line, with its newline if it has one."""
        with self.path.open("rb", buffering=1 << 20) as file:
            yield from enumerate(file, 1)

    def tail(self) -> bytes:
        """What stands after the last newline: empty, unless the last write was torn."""
        found = b""
        at = self._size
        while at and b"\n" not in found:
            start = max(0, at - _BLOCK)
            found = os.pread(self._fd, at - start, start) + found
            at = start
        return found.rpartition(b"\n")[2]

    def cut_tail(self, length: int) -> None:
        """Drop the last `length` bytes."""
        self._size -= length
        self._disk.truncate(self._fd, self._size)

    def settle(self) -> None:
        """Make durable whatever an earlier process wrote here without living to say so."""
        self._disk.fsync(self._fd)
        self._disk.fsync_directory(self.path.parent)

    def append(self, *pieces: bytes) -> None:
        """All of them, durable, or OutputFull and nothing of it; anything else: OutputBroken."""
        self._check_ours()
        size = sum(map(len, pieces))
        try:
            short = self._disk.write(self._fd, *pieces) < size
            if not short:
                self._disk.fsync(self._fd)
        except OSError as e:
            if e.errno not in FULL:
                raise OutputBroken(f"{self.path}: {e.strerror}") from e
            short = True
        if short:
            self._roll_back()
            raise OutputFull(f"{self.path}: no room for {size} bytes")
        self._size += size

    def close(self) -> None:
        """Unlock."""
        os.close(self._fd)

    def _roll_back(self) -> None:
        try:
            self._disk.truncate(self._fd, self._size)
            self._disk.fsync(self._fd)
        except OSError as e:
            raise OutputBroken(f"{self.path}: a torn batch can't be removed: {e.strerror}") from e

    def _check_ours(self) -> None:
        """Rows appended to a deleted or foreign file would be lost behind our back."""
        now = os.fstat(self._fd)
        if not now.st_nlink:
            raise OutputBroken(f"{self.path}: was deleted while it was being written")
        if now.st_size != self._size:
            raise OutputBroken(f"{self.path}: somebody else changed it while it was being written")


def has_room(path: Path, size_bytes: int) -> bool:
    """Whether this much can be written beside (or in) `path` now: tried, not asked."""
    directory = path if path.is_dir() else path.parent
    probe = directory / f".warren-room-{uuid.uuid4().hex}"
    try:
        with probe.open("wb") as file:
            file.write(bytes(size_bytes))
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        return False
    finally:
        probe.unlink(missing_ok=True)
    return True
