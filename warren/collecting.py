"""What `warren collect` and the demo do: one run, from a checked dataset to committed rows.

    check input -> open run record and output -> connect -> workers + sink + publisher -> summary

The run is over when every expected id is committed, not when a count is reached. Interrupted, it
leaves everything that is finished safe, and the same command goes on.
"""

import asyncio
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

from broker.errors import UsageError
from broker.messages import Task
from broker.serve import serve
from broker.topology import (
    LANES,
    QueueSpec,
    ladder_queues,
    model_queue,
    run_results_queue,
    tool_queue,
)
from producers.checks import good_lines
from producers.healing import heal
from producers.publisher import Id, Instance, Publisher, queues_for, remaining
from sinks.roles import collect_into
from warren.accounts import Accounts
from warren.blocking import watching
from warren.connections import Connections, check_reachable, connect
from warren.environment import Environment
from warren.hosting import Plan, open_all
from warren.models import asked, check_priced, model_of, served
from warren.options import CollectOptions
from warren.preparing import Collection, prepared
from warren.progress import showing
from warren.sandboxing import sandboxed
from warren.settings import Settings
from warren.summary import RunSummary
from warren.suspects import hosted
from warren.torn import forget_torn
from workers.model_gateway.config import ModelConfig

#: A collector keeps this many times its concurrency out, so that its agents never wait for it.
_WINDOW_FACTOR = 4
_AGAIN = "run the same command again to go on; the call then runs in a process of its own"


async def collect(
    options: CollectOptions, settings: Settings, environment: Environment
) -> RunSummary:
    """Collect one run to its end. Raises UsageError, Unreachable, OutputRefused."""
    if options.workers == "own" and (missing := environment.missing()) is not None:
        raise UsageError(f"environment {environment.name} {missing}")
    models = _models(options, settings, environment)
    check_priced(options.budget, _asked(options, environment), settings)
    await check_reachable(settings, models.values())
    with ExitStack() as stack:
        collection = await asyncio.to_thread(prepared, options, environment, stack)
        accounts = Accounts(collection)
        await asyncio.to_thread(accounts.read)
        journal_file = options.output.with_name(f"{options.output.name}.journal.sqlite")
        try:
            async with connect(settings, journal_file) as at:
                await _collect(at, collection, settings, accounts, models)
        except asyncio.CancelledError:
            _say_how_to_go_on(collection, accounts)
            raise
        if settings.redis is None:
            _remove_journal(journal_file)
        return accounts.summary()


def _models(
    options: CollectOptions, settings: Settings, environment: Environment
) -> dict[str, ModelConfig]:
    """The endpoints that this process will ask; none where other workers do."""
    if options.workers == "external":
        return {}
    return served(_asked(options, environment), settings)


def _asked(options: CollectOptions, environment: Environment) -> list[str]:
    return asked(options.model, options.judge_model, environment.spec())


async def _collect(
    at: Connections,
    collection: Collection,
    settings: Settings,
    accounts: Accounts,
    models: Mapping[str, ModelConfig],
) -> None:
    options, record = collection.options, collection.run.record
    for note in collection.run.notes:
        _say(options, note)
    await collection.run.register(at.runs)
    torn = await forget_torn(at, collection)
    publisher = _publisher(at, collection, accounts)
    accounts.tell_publisher = publisher.committed
    workers_stop, sink_stop = asyncio.Event(), asyncio.Event()
    async with (
        showing(accounts.progress, sys.stderr, quiet=options.quiet),
        asyncio.TaskGroup() as group,
    ):
        if options.workers == "own":
            group.create_task(_work(at, collection, settings, models, workers_stop))
        group.create_task(
            collect_into(
                collection.output,
                at.broker,
                at.journal,
                at.runs,
                run=record.run,
                generation=record.generation,
                stop=sink_stop,
                on_committed=accounts.committed,
            )
        )
        embedded = settings.broker is None
        healing = group.create_task(_heal(at, collection, accounts, publisher, embedded))
        await publisher.publish(_instances(collection, embedded=embedded, torn=torn))
        await accounts.finished.wait()
        healing.cancel()
        workers_stop.set()
        sink_stop.set()
    await at.broker.delete(run_results_queue("collect", record.run).name)


async def _heal(
    at: Connections,
    collection: Collection,
    accounts: Accounts,
    publisher: Publisher,
    embedded: bool,
) -> None:
    """Watch for lost messages where there is a broker that can lose them."""
    if not embedded:
        await heal(
            at.broker,
            publisher,
            publisher.queues,
            lambda: _instances(collection, embedded=True),
            lambda: accounts.safe,
        )


def _publisher(at: Connections, collection: Collection, accounts: Accounts) -> Publisher:
    options, record = collection.options, collection.run.record
    template = Task(
        run=record.run,
        generation=record.generation,
        task_index=0,
        repeat=0,
        environment=collection.environment.name,
        model=collection.model,
        row=b"",
        sampling=options.sampling,
        limits=options.limits,
        budget=options.budget,
        audiences=("collect",),
        system_prompt=options.system_prompt,
        examples=options.examples,
        judge_model=options.judge_model,
        attempt=collection.attempt,
    )
    return Publisher(
        at.broker,
        at.runs,
        template,
        queues=run_queues(template),
        window=options.window or options.concurrency * _WINDOW_FACTOR,
        published_before=accounts.resumed,
        on_published=lambda now: collection.run.published(now.end, record.repeats),
    )


def run_queues(task: Task) -> list[QueueSpec]:
    """All queues that a run's messages need, so that none of them is ever unroutable."""
    models = {task.model, model_of(task.judge_model or task.model, task.environment)}
    calls = [model_queue(lane, model) for model in models for lane in LANES]
    waits = [*ladder_queues("model"), *ladder_queues("tool")]
    own = queues_for(task.environment, task.run, task.audiences)
    return [*own, *calls, tool_queue(task.environment), *waits]


def _instances(
    collection: Collection, *, embedded: bool, torn: frozenset[Id] = frozenset()
) -> Iterator[Instance]:
    ids, record = collection.output.ids, collection.run.record
    missing = remaining(
        good_lines(collection.report),
        record.repeats,
        [ids.bitmap(repeat) for repeat in range(record.repeats)],
        () if embedded or collection.attempt > 1 else record.watermark,
    )
    return (each._replace(out=each.out and each.id not in torn) for each in missing)


async def _work(
    at: Connections,
    collection: Collection,
    settings: Settings,
    models: Mapping[str, ModelConfig],
    stop: asyncio.Event,
) -> None:
    """All worker kinds in this process; they die with it."""
    spec = collection.environment.spec()
    plan = Plan(
        environments={spec.name: spec},
        models=models,
        agent_slots=collection.options.concurrency,
        tool_prefetch=settings.prefetch["tool"],
        model_prefetch=max(settings.prefetch["model"], collection.options.concurrency),
        verifier_prefetch=settings.prefetch["verifier"],
        renew_after_s=settings.renew_after_s,
    )
    risky = [spec.name] if collection.environment.sandboxed else []
    async with (
        sandboxed(risky, unsafe=settings.unsafe_no_sandbox),
        open_all(at, plan) as sources,
        hosted(at, plan.environments),
    ):
        with watching(settings.block_limit_s, _AGAIN):
            await serve(at.broker, sources, stop=stop)


def _say_how_to_go_on(collection: Collection, accounts: Accounts) -> None:
    """Interrupted: what is safe, where, and what to type. Said to the quiet too."""
    options, run = collection.options, collection.run.record.run
    lines = [
        f"interrupted: {accounts.safe:,} of {accounts.expected:,} rollouts are safe in "
        f"{options.output}; the same command goes on from there",
    ]
    if options.workers == "external":
        lines.append(
            "the workers go on with what is published, and what they finish waits in the broker; "
            f"`warren cancel {run}` ends the run instead"
        )
    sys.stderr.write("".join(f"warren: {line}\n" for line in lines))


def _say(options: CollectOptions, note: str) -> None:
    if not options.quiet:
        sys.stderr.write(f"warren: {note}\n")


def _remove_journal(path: Path) -> None:
    """Every row is durable: nothing in it is needed any more."""
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
