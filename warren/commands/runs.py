"""`warren runs`: what is known of the runs in Redis, or of one of them."""

import json
import sys
from collections.abc import Sequence
from typing import Any

from broker.errors import UsageError
from broker.journal.runs import RunProgress
from warren.connections import connect
from warren.options import EXIT_OK, RunsOptions
from warren.settings import Settings
from warren.values import did_you_mean

_COLUMNS = ("run", "environment", "model", "state", "published", "committed", "failed", "reward")


async def run(options: RunsOptions, settings: Settings) -> int:
    """List the runs, newest first."""
    async with connect(settings) as at:
        known = await at.runs.list()
    shown = [p for p in known if options.run in (None, p.info.run)]
    if options.run is not None and not shown:
        names = [p.info.run for p in known]
        raise UsageError(f"unknown run {options.run!r}{did_you_mean(options.run, names)}")
    rows = [_row(progress) for progress in shown]
    sys.stdout.write(json.dumps({"runs": rows}) + "\n" if options.json else _table(rows))
    return EXIT_OK


def _row(progress: RunProgress) -> dict[str, Any]:
    totals = progress.totals
    return {
        "run": progress.info.run,
        "environment": progress.info.environment,
        "model": progress.info.model,
        "state": _state(progress),
        "published": progress.published,
        "committed": progress.committed,
        "failed": totals.failed,
        "reward": round(totals.reward_sum / totals.rewarded, 4) if totals.rewarded else None,
    }


def _state(progress: RunProgress) -> str:
    if progress.complete and progress.committed >= progress.published:
        return "done"
    if progress.cancelled:
        return "cancelled"
    return "running" if progress.complete else "publishing"


def _table(rows: Sequence[dict[str, Any]]) -> str:
    cells = [list(_COLUMNS)]
    cells += [["-" if row[c] is None else str(row[c]) for c in _COLUMNS] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(_COLUMNS))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in cells]
    return "\n".join(line.rstrip() for line in lines) + "\n"
