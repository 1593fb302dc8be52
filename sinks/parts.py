"""A directory of parts: one series per shard, each part committed whole by a name nobody can take.

    part-<shard>-<number>.jsonl.zst     committed: immutable, complete, its number never used again
    failed-<shard>-<number>.jsonl.zst   failed rows; one that has a good row elsewhere is void
    .tmp-<shard>-<uuid>                 being written
    .warren.json                        whose directory it is, and its format; written once

A part is written aside, fsynced and given its name with `link`, which never replaces. A sink
tries number n + 1 only after it has read 1 .. n, so whoever commits knows every committed id: two
sinks on one shard are slow, never wrong. A name that exists is a rival's part: it is read, its
rollouts are dropped from the batch, and the next number is tried.
"""

import errno
import io
import json
import os
import re
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, Literal

import zstandard

from broker.crashpoints import crash_at
from broker.journal.base import Totals
from sinks.base import OutputBroken, OutputFull, OutputRefused
from sinks.files import FULL, Disk
from sinks.ids import Ids, Ledger
from sinks.rows import Row
from sinks.totals import BadRow, RowSummary, summary_of_json

Series = Literal["part", "failed"]
SERIES: Final[tuple[Series, ...]] = ("part", "failed")
CLAIM: Final = ".warren.json"
_NAME: Final = re.compile(r"(part|failed)-([a-z0-9_]+)-(\d{9})\.(jsonl|jsonl\.zst)")


class OtherGeneration(OutputRefused):
    """The directory holds rows of another generation of this run (its output was deleted once)."""


@dataclass(frozen=True, slots=True)
class Part:
    """A committed part, by its name."""

    path: Path
    series: Series
    shard: str
    number: int


def list_parts(root: Path) -> list[Part]:
    """All committed parts in a directory: good rows first, then by shard and number."""
    found = []
    for path in root.iterdir():
        match = _NAME.fullmatch(path.name)
        if match is not None:
            series: Series = "part" if match[1] == "part" else "failed"
            found.append(Part(path, series, match[2], int(match[3])))
    return sorted(found, key=lambda p: (SERIES.index(p.series), p.shard, p.number))


def first_gap(parts: Sequence[Part]) -> Part | None:
    """The first part before which a number of its series is missing."""
    expected: dict[tuple[Series, str], int] = {}
    for part in parts:
        series = (part.series, part.shard)
        if part.number != expected.get(series, 1):
            return part
        expected[series] = part.number + 1
    return None


def read_part(path: Path) -> Iterator[bytes]:
    """Lines of a part, streaming. Raises OutputRefused, naming the file, where it is torn."""
    with path.open("rb") as file:
        try:
            yield from _zstd_lines(file) if path.suffix == ".zst" else _lines(file)
        except (zstandard.ZstdError, OSError, ValueError) as e:
            raise OutputRefused(
                f"{path}: unreadable part ({e}); restore it from a copy, or move the whole "
                "directory away and run again: a part is never skipped"
            ) from e


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    for line in file:
        if not line.endswith(b"\n"):
            raise ValueError("the last line is torn")
        yield line


def _zstd_lines(file: IO[bytes]) -> Iterator[bytes]:
    size = zstandard.get_frame_parameters(file.read(18)).content_size
    file.seek(0)
    read = 0
    with zstandard.ZstdDecompressor().stream_reader(file, closefd=False) as stream:
        for line in _lines(io.BufferedReader(stream, 1 << 17)):
            read += len(line)
            yield line
    if read != size:  # the reader ends quietly where the file does
        raise ValueError(f"{read} of {size} bytes are there")


class PartFiles:
    """An Output: one shard's series in `root`."""

    def __init__(
        self,
        root: Path,
        shard: str = "0",
        *,
        run: str | None = None,
        generation: str | None = None,
        compress: bool = True,
        disk: Disk | None = None,
        before: Iterable[RowSummary] = (),
    ) -> None:
        """Read what is committed. `compress` is for a new directory; an old one keeps its format.

        `before`: rows that are durable elsewhere and count as this output's.
        Raises OutputRefused (a gap, an unreadable part, no hard links), OtherGeneration.
        """
        self._root = root
        self._shard = shard
        self._run = run
        self._disk = disk or Disk()
        self._ledger = Ledger(apart=True)
        self._last: dict[Series, int] = {"part": 0, "failed": 0}
        try:
            root.mkdir(parents=True, exist_ok=True)
            self._format = self._claim(generation, "jsonl.zst" if compress else "jsonl")
            self._sweep()
            # a rival's part may stand here under a name that is not durable yet
            self._disk.fsync_directory(root.parent)
            self._disk.fsync_directory(root)
        except OSError as e:
            raise OutputRefused(f"{root}: can't be used for output: {e.strerror}") from e
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
            if os.path.samefile(temporary, target):  # NFS repeats a request whose answer it lost
                return True
            self._disk.fsync_directory(self._root)
            self._read_committed()
            return False
        except FileNotFoundError as e:
            if not self._root.is_dir():
                raise OutputBroken(f"{self._root}: was deleted while it was being written") from e
            return False  # another sink's start has swept our temporary file
        return True

    def _write(self, rows: Sequence[Row]) -> Path:
        data = b"\n".join([*(row.data for row in rows), b""])
        if self._format == "jsonl.zst":
            data = zstandard.ZstdCompressor(level=3, write_checksum=True).compress(data)
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
        return self._root / f"{series}-{self._shard}-{number:09d}.{self._format}"

    def _read_committed(self) -> None:
        """Read the parts that are new to us. A name is there only if its part is whole."""
        ours = [p for p in list_parts(self._root) if p.shard == self._shard]
        gap = first_gap(ours)
        if gap is not None:
            raise OutputRefused(
                f"{gap.path}: the part before it is missing; restore it, or move the whole "
                "directory away and run again"
            )
        for part in ours:
            if part.number > self._last[part.series]:
                self._read(part)
                self._last[part.series] = part.number

    def _read(self, part: Part) -> None:
        for number, line in enumerate(read_part(part.path), 1):
            try:
                row = summary_of_json(line)
            except BadRow as e:
                raise OutputRefused(f"{part.path}:{number}: not a row of Warren's ({e})") from e
            self._check_run(row, f"{part.path}:{number}")
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

    def _claim(self, generation: str | None, format_: str) -> str:
        """Make the directory this generation's, or read whose it is; the format to write."""
        ours = self._root / f".tmp-{self._shard}-{uuid.uuid4().hex}"
        claim = {"run": self._run, "generation": generation, "format": format_}
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
            return self._claim(generation, format_)  # swept by another sink's start
        except OSError as e:
            raise OutputRefused(
                f"{self._root}: this filesystem has no hard links ({e.strerror}), which commits "
                "need; choose another directory"
            ) from e
        finally:
            ours.unlink(missing_ok=True)
        if generation is not None and claim["generation"] not in {None, generation}:
            raise OtherGeneration(f"{self._root}: holds generation {claim['generation']!r}")
        return str(claim["format"])
