"""Runs suspects: rollouts that may kill their worker, one at a time in a process of their own.

An agent worker process keeps watch over its environments' suspect queues. Where one has work and
no consumer, it starts a child that runs one rollout at a time and ends when there is none left. A
child that dies took only its one suspect with it; the broker redelivers that, the journal counts
the strike, and the next child goes on until the rollout is done or has become a failed row.

    python -m warren.suspects ENVIRONMENT      (broker and Redis by WARREN_BROKER, WARREN_REDIS)
"""

import asyncio
import logging
import signal
import sys
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Final

from broker.base import Broker
from broker.deadlines import within
from broker.serve import serve
from broker.topology import task_queue
from warren.connections import Connections, connect
from warren.hosting import Plan, agent_worker
from warren.loading import load_environment
from warren.settings import Settings, child_environment, load
from workers.agent.worker import AgentWorker
from workers.spec import EnvironmentSpec

log = logging.getLogger(__name__)

_LOOK_S: Final = 2.0
#: A child with nothing to do for this long ends.
_IDLE_S: Final = 4.0
#: What a child may take to end, starting or not: more than its grace and its parting.
END_S: Final = 10.0


@asynccontextmanager
async def watched(
    broker: Broker, references: Mapping[str, str], settings: Settings, *, end_s: float = END_S
) -> AsyncGenerator[None, None]:
    """Start children for these environments (name -> as typed) as long as the context is open.

    One that has not ended `end_s` after SIGTERM is killed.
    """
    await broker.declare([task_queue("suspect", name) for name in references])
    async with asyncio.TaskGroup() as group:
        watches = [
            group.create_task(_watch(broker, name, typed, settings, end_s))
            for name, typed in references.items()
        ]
        yield
        for watch in watches:
            watch.cancel()


async def _watch(broker: Broker, name: str, typed: str, settings: Settings, end_s: float) -> None:
    queue = task_queue("suspect", name).name
    while True:
        await asyncio.sleep(_LOOK_S)
        depth = await broker.depth(queue)
        if depth is not None and depth.ready and not depth.consumers:
            await _run_child(typed, settings, end_s)


async def _run_child(typed: str, settings: Settings, end_s: float) -> None:
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "warren.suspects",
        typed,
        stdin=asyncio.subprocess.DEVNULL,
        env=child_environment(settings),
    )
    log.warning("suspect process started", extra={"environment": typed, "pid": child.pid})
    try:
        code = await child.wait()
        log.warning("suspect process ended", extra={"environment": typed, "code": code})
    except asyncio.CancelledError:
        await _end(child, end_s)
        raise


async def _end(child: asyncio.subprocess.Process, within_s: float) -> None:
    """It gives back what it has; what it waits for may be away, and a kill gives back too."""
    child.terminate()
    try:
        with within(within_s):
            await child.wait()
    except TimeoutError:
        child.kill()
        await child.wait()


@asynccontextmanager
async def hosted(
    at: Connections, environments: Mapping[str, EnvironmentSpec]
) -> AsyncGenerator[AgentWorker, None]:
    """Run suspects one at a time inside this process: what embedded runs can do."""
    alone = Plan(environments=environments, agent_slots=1, lanes=("suspect",))
    stop = asyncio.Event()
    async with agent_worker(at, alone) as worker, asyncio.TaskGroup() as group:
        group.create_task(serve(at.broker, worker.sources(), stop=stop))
        yield worker
        stop.set()


async def _child(typed: str) -> None:
    settings = load({}).settings
    environment = load_environment(typed)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with (
        connect(settings) as at,
        hosted(at, {environment.name: environment.spec()}) as worker,
    ):
        await _idle(at.broker, environment.name, worker, stop)


async def _idle(broker: Broker, name: str, worker: AgentWorker, stop: asyncio.Event) -> None:
    """Return when there has been nothing to do for a while, or when told to stop."""
    queue = task_queue("suspect", name).name
    idle_looks = 0
    while idle_looks < 2 and not stop.is_set():
        await asyncio.sleep(_IDLE_S / 2)
        depth = await broker.depth(queue)
        busy = worker.running or (depth is not None and depth.ready)
        idle_looks = 0 if busy else idle_looks + 1


if __name__ == "__main__":
    asyncio.run(_child(sys.argv[1]))
