"""Small parts become larger ones: each block of them, once whole, is merged into one part.

    part-0-000000001 .. part-0-000000064   become   part-0-000000001-000000064

Blocks are aligned and as wide as the directory's claim says, so whoever merges one gives it the
same name and the same rows. The order of steps is the promise: the merged part is written aside,
synced and linked (never over another), its name is synced, and only then do the parts it covers
go, which are void from the moment it has its name. A crash in between leaves files that nobody
reads any more; whoever opens the output next removes them.

The number of a part that went is free again as a name, so whoever commits looks, after it has
linked a part and before it counts on it, whether a merged part covers that number (`void`).
"""

import errno
import logging
import os
import uuid
from collections.abc import Sequence
from contextlib import suppress
from io import BufferedWriter, RawIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Final

from broker.crashpoints import crash_at
from sinks.base import OutputBroken, OutputRefused
from sinks.files import FULL, Disk
from sinks.part_formats import PartFormat, merge
from sinks.part_names import CLAIM, SERIES, Part, Series, listing, part_name

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

log = logging.getLogger(__name__)

#: So many parts of a series make a block.
BLOCK_PARTS: Final = 64
#: Blocks of more stay as they are: their parts are not small, and no commit waits long for a merge.
BLOCK_BYTES: Final = 16 * 1024 * 1024
_PIECE_BYTES: Final = 1 << 20


class Compactor:
    """The blocks of one shard's series."""

    def __init__(
        self, root: Path, shard: str, format_: PartFormat, width: int, most_bytes: int, disk: Disk
    ) -> None:
        self._root = root
        self._shard = shard
        self._format = format_
        self._width = width
        self._most_bytes = most_bytes
        self._disk = disk
        self._next: dict[Series, int] = dict.fromkeys(SERIES, 1)
        """Where the first block begins that was not looked at."""
        self._wait: dict[Series, int] = dict.fromkeys(SERIES, 0)
        """Nothing is tried before so many parts: there was no room."""

    def void(self, series: Series, number: int) -> bool:
        """Whether a merged part stands for this number."""
        first = number - (number - 1) % self._width
        return self._merged(series, first).exists()

    def step(self, last: dict[Series, int]) -> None:
        """Merge at most one block of the parts up to `last`. Raises OutputBroken."""
        for series in SERIES:
            while self._next[series] + self._width - 1 <= last[series] >= self._wait[series]:
                first = self._next[series]
                try:
                    merged = self._block(series, first)
                except OSError as e:
                    if e.errno not in FULL:
                        raise OutputBroken(f"{self._root}: {e.strerror}") from e
                    self._wait[series] = last[series] + self._width
                    return log.warning("no room to merge parts", extra={"path": str(self._root)})
                self._next[series] = first + self._width
                if merged:
                    return None
        return None

    def remove(self, parts: Sequence[Part]) -> None:
        """Remove void parts; the names of the merged ones that stand for them are synced."""
        for part in parts:
            self._disk.remove(part.path)

    def _block(self, series: Series, first: int) -> bool:
        """Merge a block, unless it is merged, or large; whether that was work."""
        target = self._merged(series, first)
        numbers = range(first, first + self._width)
        sources = [self._path(series, number) for number in numbers]
        temporary = self._root / f".tmp-{self._shard}-{uuid.uuid4().hex}"
        try:
            if target.exists() or sum(p.stat().st_size for p in sources) > self._most_bytes:
                return False
            self._write(sources, temporary)
            crash_at("sink.before_merge")
            self._link(temporary, target)
        except FileNotFoundError:  # a rival merges this block, or swept our temporary file
            return False
        except OutputRefused as e:  # its rows are no worse off; an audit names it too
            log.error("parts can't be merged", extra={"error": str(e)})
            return False
        finally:
            temporary.unlink(missing_ok=True)
        crash_at("sink.after_merge")
        for source in sources:
            self._disk.remove(source)
            crash_at("sink.amid_removal")
        return True

    def _link(self, temporary: Path, target: Path) -> None:
        with suppress(FileExistsError):  # a rival's, of the same rows
            self._disk.link(temporary, target)
        self._disk.fsync_directory(self._root)

    def _write(self, sources: Sequence[Path], temporary: Path) -> None:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            with BufferedWriter(_Out(fd, self._disk), _PIECE_BYTES) as out:
                merge(sources, out)
            self._disk.fsync(fd)
        finally:
            os.close(fd)

    def _path(self, series: Series, number: int) -> Path:
        return self._root / part_name(series, self._shard, number, None, self._format)

    def _merged(self, series: Series, first: int) -> Path:
        last = first + self._width - 1
        return self._root / part_name(series, self._shard, first, last, self._format)


def end_merges(root: Path) -> None:
    """Remove void parts in all directories in `root`: no sink opens those of ended runs."""
    disk = Disk()
    for claim in root.glob(f"*/{CLAIM}"):
        try:
            if void := listing(claim.parent).void:
                disk.fsync_directory(claim.parent)
            for part in void:
                disk.remove(part.path)
        except OSError as e:  # nobody waits for it
            log.warning("merged parts stay", extra={"path": str(claim.parent), "error": str(e)})


class _Out(RawIOBase):
    """A file on a Disk."""

    def __init__(self, fd: int, disk: Disk) -> None:
        self._fd = fd
        self._disk = disk

    def writable(self) -> bool:
        return True

    def write(self, data: "ReadableBuffer") -> int:
        piece = bytes(data)
        if self._disk.write(self._fd, piece) < len(piece):
            raise OSError(errno.ENOSPC, "short write")
        return len(piece)
