"""`warren enqueue`: publish a dataset's task instances; standing sinks write the rows.

The run's generation is made from what is asked for, so the same command adds nothing that is
durable already, and another dataset under the same run id is refused.
"""

import asyncio
import hashlib
import json
import logging
import sys
import time
import uuid
from pathlib import Path

import msgspec

from broker.errors import JournalUnavailable, UsageError
from broker.journal.runs import RunInfo, RunProgress
from broker.messages import Task
from broker.names import is_name
from producers import bitmap
from producers.checks import CheckReport, good_lines
from producers.healing import heal
from producers.publisher import Publisher, remaining
from warren.collecting import run_queues
from warren.commands.collect import exit_code, show
from warren.connections import Connections, connect
from warren.loading import load_environment
from warren.models import asked, check_priced, model_of
from warren.options import EXIT_OK, EnqueueOptions
from warren.preparing import checked_input
from warren.progress import Progress, showing
from warren.settings import Settings
from warren.summary import EnvironmentSummary, RunSummary

log = logging.getLogger(__name__)

#: How often the run's record is read while waiting.
_POLL_S = 0.5
#: What `--wait` keeps out at most unless told otherwise.
_WAIT_WINDOW = 4096


async def run(options: EnqueueOptions, settings: Settings) -> int:
    """Publish everything; with --wait, return when every row is durable."""
    if settings.broker is None:
        raise UsageError("enqueue needs --broker URL (WARREN_BROKER)")
    environment = load_environment(options.environment)
    run_id = options.run_id or uuid.uuid4().hex[:12]
    if not is_name(run_id):
        raise UsageError(f"run id {run_id!r}: only a-z, 0-9, _ and -, at most 64 characters")
    names = asked(options.model, options.judge_model, environment.spec())
    check_priced(options.budget, names, settings)
    report = await asyncio.to_thread(checked_input, options, Path(f"{run_id}.enqueue"))
    task = _template(options, environment.name, run_id, report)
    async with connect(settings) as at:
        return await _enqueue(at, options, task, report)


def _template(options: EnqueueOptions, environment: str, run_id: str, report: CheckReport) -> Task:
    model = model_of(options.model, environment)
    asked = msgspec.json.encode(
        [
            *(report.sha256, environment, model, options.sampling),
            *(options.system_prompt, options.examples),
            *([options.judge_model] if options.judge_model else []),
        ]
    )
    return Task(
        run=run_id,
        generation=hashlib.sha256(asked).hexdigest()[:12],
        task_index=0,
        repeat=0,
        environment=environment,
        model=model,
        row=b"",
        sampling=options.sampling,
        limits=options.limits,
        budget=options.budget,
        audiences=("sink",),
        lane="normal" if options.wait else "bulk",
        system_prompt=options.system_prompt,
        examples=options.examples,
        judge_model=options.judge_model,
    )


async def _enqueue(
    at: Connections, options: EnqueueOptions, task: Task, report: CheckReport
) -> int:
    await _register(at, options, task)
    waiting = _Waiting(at, options, task, report)
    known = await waiting.look()
    publisher = Publisher(
        at.broker,
        at.runs,
        task,
        queues=run_queues(task),
        window=(options.window or _WAIT_WINDOW) if options.wait else options.window,
        published_before=sum(bitmap.count(bits) for bits in known),
    )
    waiting.publisher = publisher
    quiet = options.quiet or not options.wait
    async with showing(waiting.progress, sys.stderr, quiet=quiet), asyncio.TaskGroup() as group:
        polling = group.create_task(waiting.poll()) if options.wait or options.window else None
        healing = group.create_task(
            heal(
                at.broker,
                publisher,
                publisher.queues,
                lambda: remaining(good_lines(report), options.repeats),
                lambda: waiting.safe,
            )
        )
        published = await publisher.publish(remaining(good_lines(report), options.repeats, known))
        if options.wait:
            await waiting.finished.wait()
        healing.cancel()
        if polling is not None:
            polling.cancel()
    if options.wait:
        summary = await waiting.summary()
        show(summary, quiet=options.quiet, as_json=options.json)
        return exit_code(summary, options)
    _tell(options, task.run, published.count)
    return EXIT_OK


async def _register(at: Connections, options: EnqueueOptions, task: Task) -> None:
    there = await at.runs.progress(task.run)
    if there is not None and there.info.generation != task.generation:
        raise UsageError(
            f"run {task.run!r} exists with another dataset, environment, model or sampling: "
            f"choose another --run-id"
        )
    await at.runs.register(
        RunInfo(
            run=task.run,
            generation=task.generation,
            environment=task.environment,
            model=task.model,
            repeats=options.repeats,
            created_at=time.time() if there is None else there.info.created_at,
        )
    )


class _Waiting:
    """Follows a run's record until every expected row is durable."""

    def __init__(
        self, at: Connections, options: EnqueueOptions, task: Task, report: CheckReport
    ) -> None:
        self.publisher: Publisher | None = None
        self.finished = asyncio.Event()
        self._at = at
        self._options = options
        self._task = task
        self._report = report
        self._started = time.monotonic()
        self._seen = [b""] * options.repeats
        self.progress = Progress(total=report.tasks * options.repeats)

    @property
    def safe(self) -> int:
        """How many rows are known to be durable."""
        return sum(bitmap.count(bits) for bits in self._seen)

    async def look(self) -> list[bytes]:
        """Bitmaps of the durable rows, one per repeat."""
        run, generation = self._task.run, self._task.generation
        return [
            await self._at.runs.committed(run, generation, repeat)
            for repeat in range(self._options.repeats)
        ]

    async def poll(self) -> None:
        """Tell publisher and progress what became durable, until all is."""
        while not self.finished.is_set():
            try:
                await self._look_again()
            except JournalUnavailable as e:
                log.warning("journal unavailable", extra={"error": str(e)})
            await asyncio.sleep(_POLL_S)

    async def _look_again(self) -> None:
        await self._keep_known()
        for repeat, bits in enumerate(await self.look()):
            if bits != self._seen[repeat]:
                self._hear(repeat, bits)
                self._seen[repeat] = bits
        if self._is_complete():
            self.finished.set()

    async def _keep_known(self) -> None:
        """A journal that was emptied hears of the run again; sinks mark its rows again."""
        if await self._at.runs.progress(self._task.run) is None:
            await _register(self._at, self._options, self._task)
            if self.publisher is not None:
                await self.publisher.report()

    def _hear(self, repeat: int, bits: bytes) -> None:
        before = self._seen[repeat]
        for at, byte in enumerate(bits):
            new = byte & ~(before[at] if at < len(before) else 0)
            for index in range(at * 8, at * 8 + 8) if new else ():
                if new & (0x80 >> index % 8):
                    self.progress.row(failed=False, reward=None)
                    if self.publisher is not None:
                        self.publisher.committed(index, repeat)

    def _is_complete(self) -> bool:
        want = self._report.tasks
        return all(self._count(bits) >= want for bits in self._seen)

    def _count(self, bits: bytes) -> int:
        """Durable rows of this input; others of the run (a larger limit before) don't count."""
        end = self._report.end
        whole = bits[: end // 8]
        rest = sum(bitmap.has(bits, index) for index in range(end - end % 8, end))
        return bitmap.count(whole) + rest

    async def summary(self) -> RunSummary:
        """What the run came to, by its record."""
        progress = await self._at.runs.progress(self._task.run)
        return _summary(progress, self._report, time.monotonic() - self._started)


def _summary(progress: RunProgress | None, report: CheckReport, wall_s: float) -> RunSummary:
    if progress is None:
        raise UsageError("the run's record has gone: `warren audit` its output instead")
    part = EnvironmentSummary(
        environment=progress.info.environment, tasks=report.tasks, totals=progress.totals
    )
    return RunSummary(
        run_id=progress.info.run, environments=[part], wall_s=wall_s, bad_lines=report.bad_rows
    )


def _tell(options: EnqueueOptions, run: str, published: int) -> None:
    if options.json:
        sys.stdout.write(json.dumps({"run_id": run, "published": published}) + "\n")
    elif not options.quiet:
        sys.stdout.write(f"published {published:,} task instances as run {run}\n")
