"""`warren policy update`: new weights for a model that is being asked."""

import json
import sys
import time

from producers.policy import update_policy
from warren.connections import connect
from warren.options import EXIT_OK, PolicyUpdateOptions
from warren.settings import Settings


async def run(options: PolicyUpdateOptions, settings: Settings) -> int:
    """Return when every endpoint samples with them. Raises PolicyUpdateFailed."""
    started = time.monotonic()
    async with connect(settings) as at:
        await update_policy(
            at.broker, at.shared, options.model, options.version, options.path, mode=options.mode
        )
    seconds = round(time.monotonic() - started, 3)
    said = {"model": options.model, "version": options.version, "seconds": seconds}
    line = f"{options.model} is at version {options.version} ({seconds:g} s)"
    sys.stdout.write((json.dumps(said) if options.json else line) + "\n")
    return EXIT_OK
