"""One Parquet file: parts beside it while it grows, compacted into it when the run is over.

`x.parquet.parts/` is a directory of ordinary parts (parts.py), so a row is durable before it is
in any Parquet file, which is unreadable before its footer. Compacting streams what is in
`x.parquet` and in the parts into a new file, replaces the old one in one step, then removes the
parts; a crash in between leaves rows in both, which every reader here takes once.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from broker.crashpoints import crash_at
from broker.journal.runs import Totals
from sinks.base import OutputBroken, OutputFull, OutputRefused
from sinks.files import FULL, Disk, lock
from sinks.ids import Ids
from sinks.parquet_rows import read_file, summaries_of_file, write
from sinks.part_formats import read_part
from sinks.part_names import CLAIM, list_parts, listing
from sinks.parts import PartFiles
from sinks.rows import Row, RowDict
from sinks.totals import RowSummary, summary_of, summary_of_json


class ParquetFile:
    """An Output: `path`, and `<path>.parts/` until it is closed."""

    def __init__(
        self,
        path: Path,
        *,
        run: str | None = None,
        generation: str | None = None,
        disk: Disk | None = None,
    ) -> None:
        """Open for this process alone. Raises OutputRefused."""
        self._path = path
        self._root = parts_of(path)
        self._disk = disk or Disk()
        self._closed = False
        try:
            self._root.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise OutputRefused(f"{self._root}: can't be used for output: {e.strerror}") from e
        self._lock = lock(self._root / ".lock")
        try:
            before = summaries_of_file(path) if path.exists() else ()
            self._parts = PartFiles(
                self._root, run=run, generation=generation, disk=disk, before=before
            )
        except BaseException:
            os.close(self._lock)
            raise

    @property
    def ids(self) -> Ids:
        """Rollouts with a durable row."""
        return self._parts.ids

    @property
    def totals(self) -> Totals:
        """Over all durable rows."""
        return self._parts.totals

    @property
    def paths(self) -> Sequence[Path]:
        """The file that `close` makes."""
        return [self._path]

    def commit(self, rows: Sequence[Row]) -> list[RowSummary]:
        """Write what is new as a part."""
        return self._parts.commit(rows)

    def tidy(self) -> None:
        """Closing compacts everything."""

    def close(self) -> None:
        """Compact the parts into the file. Raises OutputFull, OutputBroken; the parts then stay."""
        if self._closed:
            return
        self._closed = True
        try:
            if list_parts(self._root) or not self._path.exists():
                self._compact()
            _remove_parts(self._root)
        except OSError as e:
            failure = OutputFull if e.errno in FULL else OutputBroken
            raise failure(
                f"{self._path}: the rows are safe in {self._root}, but could not be "
                f"compacted ({e.strerror}); make room and run the same command again"
            ) from e
        finally:
            os.close(self._lock)

    def _compact(self) -> None:
        temporary = self._path.with_name(f".{self._path.name}.tmp")
        try:
            write(temporary, _merged(self._path))
            with temporary.open("rb") as file:
                self._disk.fsync(file.fileno())
            crash_at("sink.before_rename")
            os.replace(temporary, self._path)
        finally:
            temporary.unlink(missing_ok=True)
        self._disk.fsync_directory(self._path.parent)
        crash_at("sink.after_rename")


def parts_of(path: Path) -> Path:
    """Where the rows of a Parquet output are while it is being written."""
    return path.with_name(path.name + ".parts")


def iter_rows(path: Path) -> Iterator[RowDict]:
    """Rows as JSONL has them, those in `<path>.parts/` included, each rollout once; streaming."""
    yield from _merged(path)


def summaries(path: Path) -> Iterator[RowSummary]:
    """What the rows say for the accounts, those in `<path>.parts/` included."""
    for row in _merged(path):
        yield summary_of(row)


def _merged(path: Path) -> Iterator[RowDict]:
    """Each rollout once: a good row rather than a failed one, wherever they stand."""
    root = parts_of(path)
    parts = list_parts(root) if root.is_dir() else []
    good, seen = Ids(), Ids()
    for part in parts:
        for line in read_part(part.path) if part.series == "part" else ():
            row = summary_of_json(line)
            good.add(row.task_index, row.repeat)
    if path.exists():
        for known in read_file(path):
            own = known["warren"]
            id_ = (own["task_index"], own["repeat_index"])
            if not (own["status"] == "failed" and id_ in good) and seen.add(*id_):
                yield known
    for part in parts:
        for line in read_part(part.path):
            row = summary_of_json(line)
            if seen.add(row.task_index, row.repeat):
                yield msgspec.json.decode(line)


def _remove_parts(root: Path) -> None:
    """What was compacted, last part first: a crash in between leaves no gap."""
    parts, void = listing(root)
    for part in (*void, *reversed(parts)):
        part.path.unlink()
    for name in (CLAIM, ".lock"):
        (root / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # somebody else's file is in it: leave it
        root.rmdir()
