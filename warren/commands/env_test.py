"""`warren env test ENV`: play its tasks on its scripted policy and say what is wrong."""

import asyncio
import dataclasses
import itertools
import json
import os
import sys
from pathlib import Path
from typing import Final

from broker.errors import UsageError
from producers.checks import BadRow, task_row
from producers.datasets import BadDataset, read_lines
from warren.blocking import in_words, watching
from warren.env_test import Report, try_environment
from warren.environment import Environment
from warren.loading import load_environment
from warren.options import EXIT_FAILED, EXIT_OK, EnvTestOptions
from warren.sandboxing import sandboxed
from warren.settings import Settings
from workers.watchdog import Blockage

_MEND: Final = "mend it, and run the same command again"


async def run(options: EnvTestOptions, settings: Settings) -> int:
    """Problems are EXIT_FAILED, notes are not."""
    environment = load_environment(options.environment)
    rows = await asyncio.to_thread(_rows, environment, options)
    risky = [environment.name] if environment.sandboxed else []

    def blocked(blockage: Blockage) -> None:
        report = Report(environment.name, tasks=len(rows), problems=[in_words(blockage)])
        _say(report, options)
        os._exit(EXIT_FAILED)

    async with sandboxed(risky, unsafe=settings.unsafe_no_sandbox):
        with watching(settings.block_limit_s, _MEND, on_blocked=blocked):
            report = await try_environment(environment, rows)
    _say(report, options)
    return EXIT_FAILED if report.problems else EXIT_OK


def _say(report: Report, options: EnvTestOptions) -> None:
    sys.stdout.write(_json(report) if options.json else _text(report))
    sys.stdout.flush()


def _rows(environment: Environment, options: EnvTestOptions) -> list[bytes]:
    """The named tasks, or the environment's own; none is for the report to say."""
    path = Path(options.tasks) if options.tasks else environment.tasks
    if path is None:
        return []
    try:
        lines = itertools.islice(read_lines(path), options.limit)
        return [_as_agents_read_it(line.raw) for line in lines]
    except BadDataset as e:
        raise UsageError(str(e)) from e


def _as_agents_read_it(raw: bytes) -> bytes:
    try:
        return task_row(raw)
    except BadRow:
        return raw  # the report names it


def _json(report: Report) -> str:
    return json.dumps({"ok": not report.problems, **dataclasses.asdict(report)}) + "\n"


def _text(report: Report) -> str:
    lines = [f"problem: {problem}" for problem in report.problems]
    lines += [f"note: {note}" for note in report.notes]
    mean = "-" if report.mean_reward is None else f"{report.mean_reward:.3f}"
    slowest = [f"{name} {seconds:.3f} s" for name, seconds in sorted(report.tool_seconds.items())]
    lines.append(
        f"{report.environment}: {report.tasks} tasks, {report.rollouts} rollouts, "
        f"mean reward {mean}; slowest: {', '.join(slowest) or 'no tool'}, "
        f"verdict {report.verdict_seconds:.3f} s"
    )
    lines.append(f"{len(report.problems)} problems" if report.problems else "OK")
    return "\n".join(lines) + "\n"
