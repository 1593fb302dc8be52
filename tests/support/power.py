"""A disk whose power can be cut: after that, only what was synced is there, and nothing else.

    disk = PowerDisk()                     put into an output
    disk.cut(folder, elsewhere)            `folder` as it would be found after a power cut right now

As pessimistic as POSIX allows: bytes are durable by an fsync of their file, names by an fsync of
their directory. What has neither is gone; a name without its bytes is an empty file.
"""

import os
from pathlib import Path

from sinks.files import Disk


class PowerDisk(Disk):
    """Notes down what each fsync made durable."""

    def __init__(self) -> None:
        self.dies_before_syncing_names = False
        """What follows the syncing of bytes is left undone, as by a process that dies there."""
        self._bytes: dict[int, bytes] = {}
        """By inode."""
        self._names: dict[int, dict[str, int]] = {}
        """By the directory's inode: its entries' inodes."""
        self._kept: list[int] = []
        """Open for ever, so that no inode's number is used again."""

    def fsync(self, fd: int) -> None:
        super().fsync(fd)
        again = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)  # a duplicate would hold its lock
        self._kept.append(again)
        found = os.fstat(again)
        self._bytes[found.st_ino] = os.pread(again, found.st_size, 0)

    def fsync_directory(self, path: Path) -> None:
        if self.dies_before_syncing_names:
            return
        with os.scandir(path) as entries:
            found = {e.name: e.inode() for e in entries}
            self._names[path.stat().st_ino] = found
        for name, inode in found.items():
            if (path / name).is_dir():
                self._names.setdefault(inode, {})

    def remove(self, path: Path) -> None:
        """May be durable at once, before names that were given earlier are."""
        super().remove(path)
        self._names.get(path.parent.stat().st_ino, {}).pop(path.name, None)

    def cut(self, folder: Path, elsewhere: Path) -> None:
        """Make `elsewhere` what `folder`, which was durable itself, is after a power cut."""
        self._restore(folder.stat().st_ino, elsewhere)

    def _restore(self, directory: int, elsewhere: Path) -> None:
        elsewhere.mkdir()
        for name, inode in self._names.get(directory, {}).items():
            if inode in self._names:  # a directory, which may have been removed since
                self._restore(inode, elsewhere / name)
            else:
                (elsewhere / name).write_bytes(self._bytes.get(inode, b""))

    def close(self) -> None:
        """Let the inodes go."""
        while self._kept:
            os.close(self._kept.pop())
