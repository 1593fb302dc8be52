"""Where a collector's rows go: opened by the output's name, read back for the accounts."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from sinks.base import Output
from sinks.jsonl import JsonlFile
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
    """The rows that earlier calls left, for the summary. Reads without keeping."""
    if options.output.suffix == PARQUET:
        from sinks.parquet import summaries

        yield from summaries(options.output)
        return
    for path in output_paths(options):
        if path.exists():
            with path.open("rb") as file:
                yield from (summary_of_json(line) for line in file if line.endswith(b"\n"))
