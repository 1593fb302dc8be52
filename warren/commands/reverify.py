"""`warren reverify ROLLOUTS --env E -o OUT`: score stored rollouts again, without their agents."""

import asyncio
import sys
import time
from dataclasses import replace
from itertools import chain

from broker.errors import UsageError
from sinks.base import Output
from sinks.jsonl import JsonlFile
from sinks.rows import RowDict
from warren.blocking import watching
from warren.loading import load_environment
from warren.models import SCRIPTED, served
from warren.options import EXIT_OK, ReverifyOptions
from warren.outputs import PARQUET, rows_written
from warren.reverify import reverify, scorer
from warren.sandboxing import sandboxed
from warren.settings import Settings
from warren.stored import rows_in
from warren.summary import Accumulator, RunSummary

_AGAIN = "what was scored is safe; mend it, and run the same command again"


async def run(options: ReverifyOptions, settings: Settings) -> int:
    """Run again after an interruption it goes on where it was."""
    started = time.monotonic()
    if options.output.exists() and options.output.samefile(options.rollouts):
        raise UsageError("ROLLOUTS and -o name the same file: the old verdicts are worth keeping")
    environment = load_environment(options.environment)
    spec = environment.spec()
    rows = rows_in(options.rollouts)
    first = await asyncio.to_thread(next, rows, None)
    if first is None:
        raise UsageError(f"{options.rollouts}: no rows")
    _of(spec.name, first)
    judge = options.judge_model or spec.judge_model
    spec = replace(spec, judge_model=judge)
    models = served([judge] if judge not in {None, SCRIPTED} else [], settings)
    output = _open(options, first)
    accounts = Accumulator(spec.name)
    try:
        written = await asyncio.to_thread(lambda: list(rows_written(options.output)))
        for summary in written:
            accounts.add(summary)
        risky = [spec.name] if environment.sandboxed else []
        async with (
            sandboxed(risky, unsafe=settings.unsafe_no_sandbox),
            scorer(spec, models) as scoring,
        ):
            with watching(settings.block_limit_s, _AGAIN):
                await reverify(
                    (_of(spec.name, row) for row in chain([first], rows)),
                    scoring,
                    output,
                    concurrency=options.concurrency,
                    on_written=accounts.add,
                )
    finally:
        await asyncio.to_thread(output.close)
    _say(
        options,
        RunSummary(
            run_id=first["warren"]["run_id"],
            environments=[accounts.summary()],
            wall_s=time.monotonic() - started,
            outputs=[str(options.output)],
            resumed=len(written),
        ),
    )
    return EXIT_OK


def _open(options: ReverifyOptions, first: RowDict) -> Output:
    own = first["warren"]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    if options.output.suffix == PARQUET:
        from sinks.parquet import ParquetFile

        return ParquetFile(options.output, run=own["run_id"], generation=own["generation"])
    return JsonlFile(options.output, run=own["run_id"])


def _of(environment: str, row: RowDict) -> RowDict:
    own = row["warren"]
    if own["environment"] != environment:
        raise UsageError(
            f"{own['rollout_id']} is of environment {own['environment']!r}, not {environment!r}"
        )
    return row


def _say(options: ReverifyOptions, summary: RunSummary) -> None:
    if not options.quiet and not options.json:
        sys.stdout.write(summary.table() + "\n")
    if options.json:
        sys.stdout.write(summary.to_json() + "\n")
