"""What outlives sink processes under test, those processes, and what they wrote."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from broker import codec
from broker.base import Broker, Outgoing
from broker.journal.memory import MemoryJournal, MemoryRuns
from broker.journal.runs import RunInfo, Totals
from broker.memory import MemoryBroker
from broker.messages import Result
from broker.names import shard_of
from broker.topology import (
    RESULT,
    SINK_SHARDS,
    dead_queue,
    kept_queue,
    result_key,
    run_results_queue,
    sink_queue,
)
from sinks.jsonl import JsonlFile
from sinks.part_reading import committed_lines
from sinks.roles import collect_into, write_all_runs
from sinks.totals import RowSummary
from sinks.worker import Batching

RUN, GENERATION = "run-a", "g1"
QUEUE = run_results_queue("collect", RUN)
FAST = Batching(rows=4, linger_s=0.01)


class WatchedRuns(MemoryRuns):
    """Remembers which rows it was told of."""

    def __init__(self) -> None:
        super().__init__()
        self.told: set[tuple[int, int]] = set()

    async def mark(
        self,
        run: str,
        generation: str,
        shard: str,
        rows: Sequence[tuple[int, int]],
        totals: Totals,
    ) -> None:
        await super().mark(run, generation, shard, rows, totals)
        self.told |= set(rows)


class World:
    """What outlives a sink process: the broker's node, the journal, the run records."""

    def __init__(self) -> None:
        self.broker = MemoryBroker()
        self.journal = MemoryJournal()
        self.runs = WatchedRuns()

    async def publish(self, made: Result, who: str = "collect") -> None:
        shard = shard_of(made.rollout_id, SINK_SHARDS)
        await self.broker.publish(
            Outgoing(
                exchange=RESULT.name,
                key=result_key(who, made.run, shard),
                body=codec.encode(made),
                kind=codec.kind_of(Result),
            )
        )

    async def register(self, run: str = RUN, generation: str = GENERATION) -> None:
        await self.runs.register(
            RunInfo(
                run=run,
                generation=generation,
                environment="calculator",
                model="tiny",
                repeats=1,
                created_at=1.0,
            )
        )

    async def marked(self, run: str = RUN) -> int:
        progress = await self.runs.progress(run)
        assert progress is not None
        return progress.committed

    async def ready(self, queue: str = QUEUE.name) -> int:
        depth = await self.broker.depth(queue)
        assert depth is not None
        return depth.ready


@asynccontextmanager
async def opened() -> AsyncGenerator[World]:
    """A world in which run `RUN` is known and its queues are declared."""
    made = World()
    await made.broker.declare(
        [QUEUE, dead_queue(), kept_queue(), *map(sink_queue, range(SINK_SHARDS))]
    )
    await made.register()
    yield made
    await made.journal.close()
    await made.broker.close()


@asynccontextmanager
async def process(
    world: World, run: Callable[[Broker, asyncio.Event], Any]
) -> AsyncGenerator[asyncio.Task[None]]:
    """A sink process: when it is over, what it did not acknowledge is back in its queue."""
    broker, stop = world.broker.connect(), asyncio.Event()
    task = asyncio.create_task(run(broker, stop))
    try:
        yield task
        stop.set()
        await asyncio.wait([task], timeout=20)
        if not task.cancelled():
            task.result()
    finally:
        task.cancel()
        await asyncio.wait([task])
        await broker.close()


class Collector:
    """Hosts a JSONL output and hears what became durable."""

    def __init__(self, world: World, path: Path, **more: Any) -> None:
        self.seen: list[RowSummary] = []
        self._changed = asyncio.Event()
        self._world = world
        self._path = path
        self._more = more

    def __call__(self, broker: Broker, stop: asyncio.Event) -> Any:
        return collect_into(
            JsonlFile(self._path, **self._more),
            broker,
            self._world.journal,
            self._world.runs,
            run=RUN,
            generation=GENERATION,
            stop=stop,
            batching=FAST,
            on_committed=self._tell,
            probe_s=(0.01, 0.05),
        )

    async def sees(self, count: int) -> None:
        async with asyncio.timeout(20):
            while len(self.seen) < count:
                self._changed.clear()
                await self._changed.wait()

    def _tell(self, rows: Sequence[RowSummary]) -> None:
        self.seen.extend(rows)
        self._changed.set()


async def until(true: Callable[[], bool]) -> None:
    """Wait for another process's effect on disk or in a store."""
    for _ in range(2000):
        if true():
            return
        await asyncio.sleep(0.01)
    raise TimeoutError


def ids_in(path: Path) -> list[int]:
    lines = path.read_bytes().splitlines()
    return sorted(json.loads(line)["warren"]["task_index"] for line in lines)


def in_parts(root: Path) -> list[int]:
    return sorted(json.loads(line)["warren"]["task_index"] for _, _, line in committed_lines(root))


def standing(world: World, root: Path) -> Callable[[Broker, asyncio.Event], Any]:
    return lambda broker, stop: write_all_runs(
        root, broker, world.journal, world.runs, stop=stop, batching=FAST, reconcile_s=0.05
    )
