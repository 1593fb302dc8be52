"""Where a collector's rows go: opened by the output's name, read back for the accounts."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from broker.errors import UsageError
from sinks.base import Output
from sinks.ids import Ids
from sinks.jsonl import JsonlFile, remove_failed
from sinks.totals import RowSummary, summary_of_json
from warren.options import CollectOptions

PARQUET = ".parquet"


def output_paths(options: CollectOptions) -> Sequence[Path]:
    """All paths whose existence means that rows were written."""
    paths = [options.output]
    if options.output.suffix == PARQUET:
        paths.append(options.output.with_name(f"{options.output.name}.parts"))
    if options.failures is not None:
        paths.append(options.failures)
    return paths


def open_output(options: CollectOptions, run: str, generation: str) -> Output:
    """Lock and read what is there. Raises OutputRefused, OutputFull."""
    options.output.parent.mkdir(parents=True, exist_ok=True)
    if options.output.suffix == PARQUET:
        from sinks.parquet import ParquetFile

        return ParquetFile(options.output, run=run, generation=generation)
    return JsonlFile(options.output, failures=options.failures, run=run)


def written_before(options: CollectOptions) -> Iterator[RowSummary]:
    """The rows that earlier calls left, for the summary; of a superseded one only the good row."""
    if options.output.suffix == PARQUET:
        from sinks.parquet import summaries

        yield from summaries(options.output)
        return
    good = Ids()
    for path in output_paths(options):
        for row in _lines(path):
            if path == options.output or (row.task_index, row.repeat) not in good:
                good.add(row.task_index, row.repeat)
                yield row


def rows_written(path: Path) -> Iterator[RowSummary]:
    """The rows of one output."""
    if path.suffix == PARQUET:
        from sinks.parquet import summaries

        yield from summaries(path)
    else:
        yield from _lines(path)


def _lines(path: Path) -> Iterator[RowSummary]:
    if path.exists():
        with path.open("rb") as file:
            yield from (summary_of_json(line) for line in file if line.endswith(b"\n"))


def forget_failed(options: CollectOptions) -> int:
    """Take failed rows out, so that their rollouts are run again; the attempt to run them as.

    The attempt is above that of every failed row, since their journal records are tombstones.
    Raises UsageError, OutputRefused.
    """
    if options.output.suffix == PARQUET:
        raise UsageError("--retry-failed works on JSONL outputs: collect into one, then convert")
    attempts = [0]
    for path in output_paths(options):
        if path.exists():
            attempts += _failed_attempts(path)
            remove_failed(path)
    return max(attempts) + 1


def _failed_attempts(path: Path) -> Iterator[int]:
    with path.open("rb") as file:
        for line in file:
            with suppress(msgspec.DecodeError):
                own = msgspec.json.decode(line, type=_Attempted).warren
                if own.status == "failed":
                    yield own.attempt


class _Own(msgspec.Struct):
    status: str
    attempt: int


class _Attempted(msgspec.Struct):
    warren: _Own
