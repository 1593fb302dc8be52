"""One JSONL file (and, when asked, one for failed rows): appended by batches, never torn.

Opening takes the file's lock, repairs a torn last line (its row was never acknowledged), makes
what is there durable and reads the rollouts' ids, streaming. A second row of a rollout, which only
another hand can have written, is taken out: the first one counts. A malformed line elsewhere is
refused with its number: somebody's data, not ours to skip.
"""

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from broker.crashpoints import crash_at
from broker.journal.runs import Totals
from sinks.base import OutputFull, OutputRefused
from sinks.files import AppendFile, Disk, lock
from sinks.ids import Ids, Ledger
from sinks.rows import Row
from sinks.totals import BadRow, RowSummary, summary_of_json

log = logging.getLogger(__name__)


class JsonlFile:
    """An Output: `path`, and `failures` for failed rows where given (there they can be retried)."""

    def __init__(
        self,
        path: Path,
        *,
        failures: Path | None = None,
        run: str | None = None,
        disk: Disk | None = None,
    ) -> None:
        """Open for this process alone. With `run`, another run's rows are refused.

        Raises OutputRefused, OutputFull.
        """
        disk = disk or Disk()
        self._run = run
        self._ledger = Ledger(apart=failures is not None)
        self._files: list[AppendFile] = []
        try:
            for name in (path, failures):
                if name is not None:
                    self._files.append(AppendFile(name, disk))
                    if doubled := self._read(self._files[-1]):
                        self._take_out(doubled, name, disk)
        except BaseException:
            self.close()
            raise

    @property
    def ids(self) -> Ids:
        """Rollouts with a durable row."""
        return self._ledger.ids

    @property
    def totals(self) -> Totals:
        """Over all durable rows."""
        return self._ledger.totals()

    @property
    def paths(self) -> Sequence[Path]:
        """The main file, then the one for failures."""
        return [file.path for file in self._files]

    def commit(self, rows: Sequence[Row]) -> list[RowSummary]:
        """Append what is new, in one write for each file, and fsync."""
        main, failed = self._ledger.new(rows)
        written: list[RowSummary] = []
        for file, new in zip(self._files, (main, failed), strict=False):
            if new:
                self._append(file, new, written)
        return written

    def tidy(self) -> None:
        """One file is never too many."""

    def close(self) -> None:
        """Unlock the files."""
        while self._files:
            self._files.pop().close()

    def _append(self, file: AppendFile, rows: list[Row], written: list[RowSummary]) -> None:
        crash_at("sink.before_write")
        try:
            file.append(*(piece for row in rows for piece in (row.data, b"\n")))
        except OutputFull as e:
            raise OutputFull(str(e), tuple(written)) from e
        crash_at("sink.after_fsync")
        for row in rows:
            if self._ledger.record(row.summary):
                written.append(row.summary)

    def _take_out(self, doubled: set[int], path: Path, disk: Disk) -> None:
        """Lines of the newest file, which stays locked until the one in its place is."""
        log.warning("rows stood there twice", extra={"path": str(path), "rows": len(doubled)})
        _rewrite(path, lambda number, _: number not in doubled, disk)
        old = self._files.pop()
        try:
            self._files.append(AppendFile(path, disk))
        finally:
            old.close()

    def _read(self, file: AppendFile) -> set[int]:
        """The numbers of lines in the main file whose rollouts have a row before them."""
        torn = file.tail()
        if torn:
            self._repair(file, torn)
        file.settle()
        doubled: set[int] = set()
        for number, line in file.lines():
            try:
                row = summary_of_json(line)
            except BadRow as e:
                raise OutputRefused(
                    f"{file.path}:{number}: not a row of Warren's ({e}); remove or repair this "
                    f"line (`sed -i {number}d {file.path}`), or choose another output"
                ) from e
            if self._run is not None and row.run != self._run:
                raise OutputRefused(
                    f"{file.path}:{number}: belongs to run {row.run!r}, not {self._run!r}; "
                    "choose another output"
                )
            final = file is self._files[0]
            if not self._ledger.record(row, final=final) and final:
                doubled.add(number)
        return doubled

    @staticmethod
    def _repair(file: AppendFile, torn: bytes) -> None:
        try:
            summary_of_json(torn)
        except BadRow:
            file.cut_tail(len(torn))
        else:  # whole but for its newline: an editor may have taken that
            file.append(b"\n")


def remove_failed(path: Path, disk: Disk | None = None) -> int:
    """Take the failed rows out of a file that holds them inline, so that they can be run again.

    How many there were. The file is replaced in one step; a crash leaves the old one or the new.
    Raises OutputRefused.
    """
    fd = lock(path)
    try:
        return _rewrite(path, lambda _, line: not _is_failed(line), disk or Disk())
    finally:
        os.close(fd)


def _rewrite(path: Path, keep: Callable[[int, bytes], bool], disk: Disk) -> int:
    """Replace a locked file by its lines that are to stay; how many did not."""
    temporary = path.with_name(f".{path.name}.tmp")
    removed = 0
    with path.open("rb") as old, temporary.open("wb") as new:
        for number, line in enumerate(old, 1):
            if keep(number, line):
                new.write(line)
            else:
                removed += 1
        new.flush()
        disk.fsync(new.fileno())
    os.replace(temporary, path)
    disk.fsync_directory(path.parent)
    return removed


def _is_failed(line: bytes) -> bool:
    try:
        return summary_of_json(line).failed
    except BadRow:
        return False  # opening the file repairs or refuses it
