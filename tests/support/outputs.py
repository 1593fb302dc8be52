"""Every kind of output, opened and checked alike."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from sinks.audit import Report, audit
from sinks.base import Output
from sinks.files import Disk
from sinks.jsonl import JsonlFile
from sinks.parquet import ParquetFile
from sinks.parts import PartFiles
from sinks.rows import Row
from sinks.totals import RowSummary

Open = Callable[[Path, Disk | None], Output]


def _jsonl(path: Path, disk: Disk | None) -> Output:
    return JsonlFile(path.with_suffix(".jsonl"), run="run-a", disk=disk)


def _apart(path: Path, disk: Disk | None) -> Output:
    failures = path.with_suffix(".failures.jsonl")
    return JsonlFile(path.with_suffix(".jsonl"), failures=failures, run="run-a", disk=disk)


def _parts(path: Path, disk: Disk | None) -> Output:
    return PartFiles(path, run="run-a", generation="g1", disk=disk)


def _plain(path: Path, disk: Disk | None) -> Output:
    return PartFiles(path, run="run-a", generation="g1", format_="jsonl", disk=disk)


def _columns(path: Path, disk: Disk | None) -> Output:
    return PartFiles(path, run="run-a", generation="g1", format_="parquet", disk=disk)


def _merging(path: Path, disk: Disk | None) -> Output:
    return _Tidying(path, run="run-a", generation="g1", block=2, disk=disk)


class _Tidying(PartFiles):
    """Merges two parts into one as soon as they are there, and whatever else was put off."""

    def commit(self, rows: Sequence[Row]) -> list[RowSummary]:
        written = super().commit(rows)
        self.tidy()
        return written


def _parquet(path: Path, disk: Disk | None) -> Output:
    return ParquetFile(path.with_suffix(".parquet"), run="run-a", disk=disk)


KINDS: Final[dict[str, Open]] = {
    "jsonl": _jsonl,
    "apart": _apart,
    "parts": _parts,
    "plain": _plain,
    "columns": _columns,
    "merging": _merging,
    "parquet": _parquet,
}


def checked(kind: str, path: Path, expected: Sequence[tuple[int, int]] | None = None) -> Report:
    """What the audit says of an output; with `expected`, of exactly these rollouts."""
    where = {
        "jsonl": path.with_suffix(".jsonl"),
        "apart": path.with_suffix(".jsonl"),
        "parquet": path.with_suffix(".parquet"),
    }.get(kind, path)
    failures = path.with_suffix(".failures.jsonl") if kind == "apart" else None
    return audit(where, failures=failures, expected=expected)
