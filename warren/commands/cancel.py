"""`warren cancel RUN`: what is queued becomes cancelled rows, what runs ends."""

import json
import sys

from broker.errors import UsageError
from warren.connections import connect
from warren.options import EXIT_OK, CancelOptions
from warren.settings import Settings
from warren.values import did_you_mean


async def run(options: CancelOptions, settings: Settings) -> int:
    """Mark the run; agents look every two seconds."""
    async with connect(settings) as at:
        if not await at.runs.cancel(options.run):
            known = [progress.info.run for progress in await at.runs.list()]
            raise UsageError(f"unknown run {options.run!r}{did_you_mean(options.run, known)}")
    said = {"run": options.run, "cancelled": True}
    sys.stdout.write(json.dumps(said) + "\n" if options.json else f"cancelled {options.run}\n")
    return EXIT_OK
