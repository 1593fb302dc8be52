"""`warren worker KIND`: one worker in a process of its own, until SIGTERM."""

import asyncio
import functools
import logging
import signal
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Final

from broker.errors import UsageError
from broker.metered import MeteredBroker, metered_journal
from broker.metrics import Metrics
from broker.serve import serve
from warren import __version__
from warren.blocking import watching
from warren.connections import Connections, connect
from warren.environment import Environment
from warren.hosting import OPENERS, Plan
from warren.loading import list_environments, load_environment
from warren.models import SCRIPTED, served
from warren.observe import checks_of, count_rows, serving
from warren.options import EXIT_FAILED, EXIT_OK, WorkerOptions
from warren.sandboxing import sandboxed
from warren.settings import Settings
from warren.suspects import watched
from workers.watchdog import end_process

log = logging.getLogger(__name__)

#: Said with who held the interpreter's lock.
_LOCKED: Final = (
    "this worker ends, for a supervisor to start a new one; what it had goes to others, and a "
    "call that ends its worker runs in a process of its own next time"
)


async def run(options: WorkerOptions, settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT; then give everything back and end within seconds."""
    if settings.broker is None:
        raise UsageError("a worker needs --broker URL (WARREN_BROKER)")
    stop, consuming = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(None) as starting:

            def end() -> None:
                stop.set()
                if not (consuming.is_set() or starting.expired()):
                    starting.reschedule(loop.time())  # what it waits for may be away

            for signal_ in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(signal_, end)
            return await _run(options, settings, stop, consuming)
    except TimeoutError:
        if not stop.is_set():
            raise
        log.info("worker stopped before it served", extra={"kind": options.kind})
        return EXIT_OK


async def _run(
    options: WorkerOptions, settings: Settings, stop: asyncio.Event, consuming: asyncio.Event
) -> int:
    metrics = Metrics(options.kind, __version__)
    async with connect(settings) as plain:
        at = _metered(plain, metrics)
        checks = checks_of(at.broker, at.runs, consuming)
        port = settings.metrics_port or 0
        async with serving(metrics, checks, host=settings.metrics_host, port=port):
            with watching(settings.block_limit_s, _LOCKED, end_process):
                if options.kind == "sink":
                    await _sink(options, at, metrics, stop, consuming)
                    return EXIT_OK
                return await _work(options, settings, at, stop, consuming, metrics)


def _metered(at: Connections, metrics: Metrics) -> Connections:
    metrics.watch(at.broker)
    broker = MeteredBroker(at.broker, metrics)
    return Connections(broker, metered_journal(at.journal, metrics), at.runs, at.shared)


async def _work(
    options: WorkerOptions,
    settings: Settings,
    at: Connections,
    stop: asyncio.Event,
    consuming: asyncio.Event,
    metrics: Metrics,
) -> int:
    """The exit code: not 0 where a supervisor must start another in our place."""
    environments = _environments(options)
    plan = Plan(
        environments={name: each.spec() for name, each in environments.items()},
        models=served([m for m in options.models if m != SCRIPTED], settings),
        agent_slots=options.prefetch,
        tool_prefetch=options.prefetch,
        model_prefetch=options.prefetch,
        verifier_prefetch=options.prefetch,
        renew_after_s=settings.renew_after_s,
        metrics=metrics,
    )
    references = {name: each.reference for name, each in environments.items()}
    risky = [n for n, each in environments.items() if each.sandboxed]
    async with AsyncExitStack() as stack:
        if options.kind in ("tool", "verifier"):
            guard = sandboxed(risky, unsafe=settings.unsafe_no_sandbox)
            await stack.enter_async_context(guard)
        sources = await stack.enter_async_context(OPENERS[options.kind](at, plan))
        if options.kind == "agent":
            await stack.enter_async_context(watched(at.broker, references, settings))
        log.info("worker started", extra={"kind": options.kind, "queues": len(sources)})
        async with asyncio.TaskGroup() as group:
            ending = group.create_task(_end_if_unhealthy(plan.unhealthy, stop))
            await serve(at.broker, sources, stop=stop, serving=consuming)
            ending.cancel()
    log.info("worker stopped", extra={"kind": options.kind})
    return EXIT_FAILED if plan.unhealthy.is_set() else EXIT_OK


async def _end_if_unhealthy(unhealthy: asyncio.Event, stop: asyncio.Event) -> None:
    await unhealthy.wait()
    log.error("worker unhealthy: giving back and ending, for a supervisor to start a new one")
    stop.set()


async def _sink(
    options: WorkerOptions,
    at: Connections,
    metrics: Metrics,
    stop: asyncio.Event,
    consuming: asyncio.Event,
) -> None:
    from sinks.roles import write_all_runs

    if options.output is None:
        raise UsageError("a sink worker needs --output ROOT")
    log.info("worker started", extra={"kind": "sink", "root": str(options.output)})
    consuming.set()
    await write_all_runs(
        options.output,
        at.broker,
        at.journal,
        at.runs,
        stop=stop,
        format_=options.format,
        on_committed=functools.partial(count_rows, metrics),
    )
    log.info("worker stopped", extra={"kind": "sink"})


def _environments(options: WorkerOptions) -> Mapping[str, Environment]:
    """The named ones, or all built-in ones; by their own names."""
    loaded = [load_environment(typed) for typed in options.environments or list_environments()]
    for environment in loaded if options.environments else ():
        if (missing := environment.missing()) is not None:
            raise UsageError(f"environment {environment.name} {missing}")
    return {environment.name: environment for environment in loaded}
