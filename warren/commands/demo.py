"""`warren demo`: collect the shipped example tasks of every environment that needs no model."""

import dataclasses
import sys
import time
from pathlib import Path

from warren.collecting import collect
from warren.commands.collect import show
from warren.environment import Environment
from warren.loading import list_environments, load_environment
from warren.options import EXIT_OK, CollectOptions, DemoOptions
from warren.sandboxing import unavailable
from warren.settings import Settings
from warren.summary import EnvironmentSummary, RunSummary


async def run(options: DemoOptions, settings: Settings) -> int:
    """One run per environment, one after the other, each with its own output."""
    embedded = dataclasses.replace(settings, broker=None, redis=None)
    started = time.monotonic()
    parts: list[EnvironmentSummary] = []
    outputs: list[str] = []
    skipped: list[str] = []
    no_sandbox = await unavailable()
    known = list_environments()
    if any((options.output / f"{name}.jsonl").exists() for name in known):
        _say(options, f"the rows of an earlier demo in {options.output}/ are replaced")
    for name in known:
        environment = load_environment(name)
        why = environment.missing() or (environment.sandboxed and no_sandbox)
        if why:
            skipped.append(f"{name}: skipped, {why}")
        elif (one := _options(environment, options)) is not None:
            _say(options, f"{name}: {Path(one.tasks).name}")
            summary = await collect(one, embedded, environment)
            parts += summary.environments
            outputs += summary.outputs
    whole = RunSummary(
        run_id="demo",
        environments=parts,
        wall_s=time.monotonic() - started,
        outputs=outputs,
        skipped=skipped,
    )
    for line in skipped if options.json else ():
        _say(options, line)
    show(whole, quiet=options.quiet, as_json=options.json)
    return EXIT_OK


def _options(environment: Environment, options: DemoOptions) -> CollectOptions | None:
    """How to collect its examples; None where it brings no tasks or no policy of its own."""
    if environment.tasks is None or environment.spec().policy is None:
        return None
    return CollectOptions(
        tasks=str(environment.tasks),
        environment=environment.name,
        model="scripted",
        output=options.output / f"{environment.name}.jsonl",
        repeats=options.repeats,
        overwrite=True,
        quiet=options.quiet,
    )


def _say(options: DemoOptions, text: str) -> None:
    if not options.quiet:
        sys.stderr.write(f"{text}\n")
