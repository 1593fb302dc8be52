"""A directory of parts: one series per shard, each part committed whole by a name nobody can take.

    part-<shard>-<number>.jsonl.zst     committed: immutable, complete; or .parquet, .jsonl
    failed-<shard>-<number>.jsonl.zst   failed rows; one that has a good row elsewhere is void
    part-<shard>-<first>-<last>....     a block of small parts, merged (compaction.py)
    .tmp-<shard>-<uuid>                 being written
    .warren.json                        whose directory it is, and its format; written once

A part is written aside, fsynced and given its name with `link`, which never replaces. A sink
tries number n + 1 only after it has read 1 .. n, so whoever commits knows every committed id: two
sinks on one shard are slow, never wrong. A name that exists is a rival's part: it is read, its
rollouts are dropped from the batch, and the next number is tried. A name that was free because
its part has been merged is given up again, and the merged part is read.
"""

import errno
import json
import os
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from broker.crashpoints import crash_at
from broker.journal.runs import Totals
from sinks.base import OutputBroken, OutputFull, OutputRefused
from sinks.compaction import BLOCK_BYTES, BLOCK_PARTS, Compactor
from sinks.files import FULL, Disk
from sinks.ids import Ids, Ledger
from sinks.part_formats import PartFormat, pack, read_summaries
from sinks.part_names import CLAIM, SERIES, Part, Series, first_gap, listing, part_name
from sinks.rows import Row
from sinks.totals import RowSummary


class OtherGeneration(OutputRefused):
    """The directory holds rows of another generation of this run (its output was deleted once)."""


class PartFiles:
    """An Output: one shard's series in `root`."""

    def __init__(
        self,
        root: Path,
        shard: str = "0",
        *,
        run: str | None = None,
        generation: str | None = None,
        format_: PartFormat | None = None,
        block: int = BLOCK_PARTS,
        block_bytes: int = BLOCK_BYTES,
        disk: Disk | None = None,
        before: Iterable[RowSummary] = (),
    ) -> None:
        """Read what is committed.

        `format_` of the parts; None: as the directory has them, in a new one jsonl.zst. `block`:
        how many small parts `tidy` makes one of, in a new directory. `before`: rows that are
        durable elsewhere and count as this output's. Raises OutputRefused (a gap, an unreadable
        part, another format, no hard links), OtherGeneration.
        """
        self._root = root
        self._shard = shard
        self._run = run
        self._disk = disk or Disk()
        self._ledger = Ledger(apart=True)
        self._last: dict[Series, int] = {"part": 0, "failed": 0}
        try:
            root.mkdir(parents=True, exist_ok=True)
            claim = self._claim(generation, format_ or "jsonl.zst", block)
            self._sweep()
            self._disk.fsync_directory(root.parent)
        except OSError as e:
            raise OutputRefused(f"{root}: can't be used for output: {e.strerror}") from e
        self._format: PartFormat = claim["format"]
        if format_ not in {None, self._format}:
            raise OutputRefused(
                f"{root}: its parts are {self._format}, not {format_}; leave --format out to go on "
                "in their format, or choose another output"
            )
        width = claim.get("block", BLOCK_PARTS)
        self._blocks = Compactor(root, shard, self._format, width, block_bytes, self._disk)
        for row in before:
            self._check_run(row, "a row written before")
            self._ledger.record(row)
        self._read_committed()

    @property
    def ids(self) -> Ids:
        """Rollouts with a durable row in this shard."""
        return self._ledger.ids

    @property
    def totals(self) -> Totals:
        """Over this shard's durable rows."""
        return self._ledger.totals()

    @property
    def paths(self) -> Sequence[Path]:
        """The directory."""
        return [self._root]

    def commit(self, rows: Sequence[Row]) -> list[RowSummary]:
        """Write what is new as one part (and one of failed rows, where there are any)."""
        written: list[RowSummary] = []
        for series in SERIES:
            try:
                self._commit(series, rows, written)
            except OSError as e:
                if e.errno not in FULL:
                    raise OutputBroken(f"{self._root}: {e.strerror}") from e
                raise OutputFull(f"{self._root}: no room: {e.strerror}", tuple(written)) from e
        return written

    def tidy(self) -> None:
        """Merge a block of small parts, where one is whole."""
        self._blocks.step(self._last)

    def close(self) -> None:
        """Nothing is held between commits."""

    def _commit(self, series: Series, rows: Sequence[Row], written: list[RowSummary]) -> None:
        while new := self._ledger.new(rows)[SERIES.index(series)]:
            number = self._last[series] + 1
            crash_at("sink.before_write")
            temporary = self._write(new)
            try:
                crash_at("sink.before_link")
                if not self._link(temporary, self._path(series, number)):
                    continue
                crash_at("sink.after_link")
                if self._taken(series, number):
                    continue
                self._disk.fsync_directory(self._root)
                crash_at("sink.after_fsync")
            finally:
                temporary.unlink(missing_ok=True)
            self._last[series] = number
            written += [r.summary for r in new if self._ledger.record(r.summary)]

    def _link(self, temporary: Path, target: Path) -> bool:
        """Whether the part is ours now; else what stands in the way has been read."""
        try:
            self._disk.link(temporary, target)
        except FileExistsError:
            if _same(temporary, target):  # NFS repeats a request whose answer it lost
                return True
            self._read_committed()
            return False
        except FileNotFoundError as e:
            if not self._root.is_dir():
                raise OutputBroken(f"{self._root}: was deleted while it was being written") from e
            return False  # another sink's start has swept our temporary file
        return True

    def _taken(self, series: Series, number: int) -> bool:
        """Whether the number was free only because its part has been merged; then it is again."""
        if not self._blocks.void(series, number):
            return False
        self._disk.remove(self._path(series, number))
        self._read_committed()
        return True

    def _write(self, rows: Sequence[Row]) -> Path:
        data = pack(self._format, [row.data for row in rows])
        temporary = self._root / f".tmp-{self._shard}-{uuid.uuid4().hex}"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            if self._disk.write(fd, data) < len(data):
                raise OSError(errno.ENOSPC, "short write")
            self._disk.fsync(fd)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        finally:
            os.close(fd)
        return temporary

    def _path(self, series: Series, number: int) -> Path:
        return self._root / part_name(series, self._shard, number, None, self._format)

    def _read_committed(self) -> None:
        """Read the parts that are new to us. A name is there only if its part is whole."""
        while not self._read_listed():
            pass

    def _read_listed(self) -> bool:
        """False where a part was merged before we came to it."""
        parts, void = ([p for p in ps if p.shard == self._shard] for ps in listing(self._root))
        # a rival's part may stand here under a name that is not durable yet
        self._disk.fsync_directory(self._root)
        gap = first_gap(parts)
        if gap is not None:
            raise OutputRefused(
                f"{gap.path}: the part before it is missing; restore it, or move the whole "
                "directory away and run again"
            )
        for part in parts:
            if part.last > self._last[part.series]:
                try:
                    self._read(part)
                except FileNotFoundError:
                    return False
                self._last[part.series] = part.last
        self._blocks.remove(void)
        return True

    def _read(self, part: Part) -> None:
        for at, row in enumerate(read_summaries(part.path), 1):
            self._check_run(row, f"{part.path}:{at}")
            self._ledger.record(row)

    def _check_run(self, row: RowSummary, where: str) -> None:
        if self._run is not None and row.run != self._run:
            raise OutputRefused(
                f"{where}: belongs to run {row.run!r}, not {self._run!r}; choose another output"
            )

    def _sweep(self) -> None:
        """Remove what crashed sinks of this shard left; a living one writes its file again."""
        for temporary in self._root.glob(f".tmp-{self._shard}-*"):
            temporary.unlink(missing_ok=True)

    def _claim(self, generation: str | None, format_: PartFormat, block: int) -> dict[str, Any]:
        """Make the directory this generation's, or read whose it is, and how parts are kept."""
        ours = self._root / f".tmp-{self._shard}-{uuid.uuid4().hex}"
        claim: dict[str, Any] = {"run": self._run, "generation": generation, "format": format_}
        claim["block"] = block
        fd = os.open(ours, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            self._disk.write(fd, json.dumps(claim).encode())
            self._disk.fsync(fd)
        finally:
            os.close(fd)
        try:
            self._disk.link(ours, self._root / CLAIM)
        except FileExistsError:
            claim = json.loads((self._root / CLAIM).read_bytes())
        except FileNotFoundError:
            return self._claim(generation, format_, block)  # swept by another sink's start
        except OSError as e:
            raise OutputRefused(
                f"{self._root}: this filesystem has no hard links ({e.strerror}), which commits "
                "need; choose another directory"
            ) from e
        finally:
            ours.unlink(missing_ok=True)
        if generation is not None and claim["generation"] not in {None, generation}:
            raise OtherGeneration(f"{self._root}: holds generation {claim['generation']!r}")
        return claim


def _same(temporary: Path, target: Path) -> bool:
    try:
        return os.path.samefile(temporary, target)
    except FileNotFoundError:  # merged, or swept, at this moment
        return False
