"""`warren collect`: collect rollouts of a dataset into a file."""

import sys

from warren.collecting import collect
from warren.loading import load_environment
from warren.options import EXIT_FAILED, EXIT_OK, CollectOptions, RunOptions
from warren.settings import Settings
from warren.summary import RunSummary


async def run(options: CollectOptions, settings: Settings) -> int:
    """Collect, show what it came to, and say whether too much failed."""
    environment = load_environment(options.environment)
    summary = await collect(options, settings, environment)
    show(summary, quiet=options.quiet, as_json=options.json)
    return exit_code(summary, options)


def show(summary: RunSummary, *, quiet: bool, as_json: bool) -> None:
    """The table for people, the JSON object for programs: the last line of stdout."""
    if as_json:
        sys.stdout.write(summary.to_json() + "\n")
    elif not quiet:
        sys.stdout.write(summary.table() + "\n")


def exit_code(summary: RunSummary, options: RunOptions) -> int:
    """EXIT_FAILED where more failed than is allowed."""
    allowed = options.max_failed
    return EXIT_OK if allowed is None or summary.totals.failed <= allowed else EXIT_FAILED
