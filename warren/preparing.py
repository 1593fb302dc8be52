"""Before anything is published: the input is checked, the run's record and output are ours."""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from broker import codec
from broker.errors import UsageError
from producers.checks import CheckReport, check
from producers.datasets import BadDataset, is_stream, spool
from producers.run_record import OpenedRun, RunConflict, RunSpec, open_run
from sinks.base import Output
from warren.environment import Environment
from warren.models import model_of
from warren.options import CollectOptions, RunOptions
from warren.outputs import forget_failed, open_output, output_paths


@dataclass(frozen=True, slots=True, kw_only=True)
class Collection:
    """A run that is ready to go: its input is checked, its record and output are ours."""

    environment: Environment
    model: str
    options: CollectOptions
    report: CheckReport
    run: OpenedRun
    output: Output
    attempt: int
    """Of the tasks to be published: above 1 where failed ones are run again."""


def prepared(options: CollectOptions, environment: Environment, stack: ExitStack) -> Collection:
    """Check the input, lock the run, open its output; `stack` closes them. Blocks: use a thread.

    Raises UsageError, OutputRefused.
    """
    report = checked_input(options, options.output)
    model = model_of(options.model, environment.name)
    run = stack.enter_context(_open_run(options, environment, model, report))
    record = run.record
    attempt = forget_failed(options) if options.retry_failed else 1
    output = open_output(options, record.run, record.generation)
    stack.callback(output.close)
    return Collection(
        environment=environment,
        model=model,
        options=options,
        report=report,
        run=run,
        output=output,
        attempt=attempt,
    )


def checked_input(options: RunOptions, output: Path) -> CheckReport:
    """Check the dataset in one pass. Raises UsageError with `file:line: reason`."""
    try:
        path = _spooled(options.tasks, output) if is_stream(options.tasks) else Path(options.tasks)
        report = check(path, limit=options.limit, repeats=options.repeats)
    except BadDataset as e:
        raise UsageError(str(e)) from e
    if report.bad_rows and not options.skip_bad:
        raise UsageError(f"{report.describe()}\nrepair them, or leave them out with --skip-bad")
    if not report.tasks:
        raise UsageError(f"{options.tasks}: no tasks")
    return report


def _spooled(source: str, output: Path) -> Path:
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise _unwritable(output, e) from e
    return spool(source, output)


def _prompting(options: CollectOptions) -> str:
    """Identifies what the run puts in the place of the environment's prompt, examples and judge."""
    given = [options.system_prompt, options.examples, options.judge_model]
    if given[-1] is None:  # as it was before runs could name a judge
        del given[-1]
    return codec.digest(codec.pack(given)).hex() if any(given) else ""


def _open_run(
    options: CollectOptions, environment: Environment, model: str, report: CheckReport
) -> OpenedRun:
    spec = RunSpec(
        dataset=options.tasks,
        dataset_sha256=report.sha256,
        environment=environment.name,
        model=model,
        repeats=options.repeats,
        limit=options.limit,
        sampling=options.sampling,
        prompting=_prompting(options),
    )
    try:
        return open_run(
            options.output,
            spec,
            run=options.run_id,
            overwrite=options.overwrite,
            outputs=output_paths(options),
        )
    except RunConflict as e:
        raise UsageError(str(e)) from e
    except OSError as e:
        raise _unwritable(options.output, e) from e


def _unwritable(output: Path, error: OSError) -> UsageError:
    where = error.filename or output
    return UsageError(f"{output} cannot be written: {where}: {error.strerror}; choose another -o")
