"""The sink worker: acknowledged after it is durable and marked, whatever happens in between."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from broker import codec
from broker.base import Broker, Outgoing
from broker.errors import JournalUnavailable
from broker.journal.base import Committed, RunInfo, Totals
from broker.journal.memory import MemoryJournal, MemoryRuns
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
from sinks.base import OutputBroken
from sinks.jsonl import JsonlFile
from sinks.parts import list_parts, read_part
from sinks.roles import collect_into, write_all_runs
from sinks.rows import row_for
from sinks.totals import RowSummary
from sinks.worker import Batching, covers
from tests.support.disks import FaultyDisk
from tests.support.rollouts import result

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


@pytest.fixture
async def world() -> AsyncGenerator[World]:
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


async def test_results_become_rows_marks_and_tombstones_and_are_acknowledged(
    world: World, tmp_path: Path
) -> None:
    collector = Collector(world, tmp_path / "x.jsonl")
    key = f"{RUN}.{GENERATION}/3/0"
    await world.journal.take(key, "agent-1")
    async with process(world, collector):
        for i in range(10):
            await world.publish(result(i))
        await collector.sees(10)
    assert ids_in(tmp_path / "x.jsonl") == list(range(10))
    assert await world.ready() == 0
    assert await world.marked() == 10
    assert isinstance(await world.journal.take(key, "agent-2"), Committed)


async def test_duplicates_are_acknowledged_and_not_written(world: World, tmp_path: Path) -> None:
    collector = Collector(world, tmp_path / "x.jsonl")
    for i in (1, 2, 1, 2, 3):
        await world.publish(result(i))
    async with process(world, collector):
        await collector.sees(3)
    assert ids_in(tmp_path / "x.jsonl") == [1, 2, 3]
    assert await world.ready() == 0


async def test_rows_of_an_earlier_process_are_marked_before_any_result_comes(
    world: World, tmp_path: Path
) -> None:
    output = JsonlFile(tmp_path / "x.jsonl")
    output.commit([row_for(result(i)) for i in range(5)])
    output.close()
    collector = Collector(world, tmp_path / "x.jsonl")
    async with process(world, collector):
        await world.publish(result(5))
        await collector.sees(1)
    assert await world.marked() == 6
    progress = await world.runs.progress(RUN)
    assert progress is not None
    assert progress.totals.completed == 6


async def test_results_of_another_generation_are_dropped(world: World, tmp_path: Path) -> None:
    collector = Collector(world, tmp_path / "x.jsonl")
    await world.publish(result(1, generation="g0"))
    await world.publish(result(2))
    async with process(world, collector):
        await collector.sees(1)
    assert ids_in(tmp_path / "x.jsonl") == [2]
    assert await world.ready() == 0


async def test_what_is_no_result_goes_to_the_dead_letters(world: World, tmp_path: Path) -> None:
    collector = Collector(world, tmp_path / "x.jsonl")
    await world.broker.publish(
        Outgoing(exchange=RESULT.name, key=f"collect.{RUN}.0", body=b"junk", kind="result.v1")
    )
    await world.publish(result(1))
    async with process(world, collector):
        await collector.sees(1)
    assert await world.ready() == 0
    assert await world.ready(dead_queue().name) + await world.ready(kept_queue().name) == 1


@pytest.mark.parametrize("bad", [result(run="../up"), result(-1), result(generation="a/b")])
async def test_a_result_that_names_no_row_is_a_dead_letter_and_no_loop(
    world: World, tmp_path: Path, bad: Result
) -> None:
    collector = Collector(world, tmp_path / "x.jsonl")
    await world.broker.publish(
        Outgoing(RESULT.name, f"collect.{RUN}.0", codec.encode(bad), codec.kind_of(Result))
    )
    await world.publish(result(1))
    async with process(world, collector):
        await collector.sees(1)
    assert ids_in(tmp_path / "x.jsonl") == [1]
    assert await world.ready() == 0


async def test_a_result_that_makes_no_row_is_a_failed_row(world: World, tmp_path: Path) -> None:
    collector = Collector(world, tmp_path / "x.jsonl")
    await world.publish(result(1, row=b"not json"))
    async with process(world, collector):
        await collector.sees(1)
    assert collector.seen[0].error_kind == "infra"
    assert await world.ready() == 0


@pytest.mark.parametrize("fault", ["short", "enospc"])
async def test_a_full_disk_gives_back_waits_for_room_and_loses_nothing(
    world: World, tmp_path: Path, fault: str
) -> None:
    disk = FaultyDisk()
    collector = Collector(world, tmp_path / "x.jsonl", disk=disk)
    disk.fail_next(fault)
    for i in range(9):
        await world.publish(result(i))
    async with process(world, collector):
        await collector.sees(9)
    assert ids_in(tmp_path / "x.jsonl") == list(range(9))
    assert await world.ready() == 0


@pytest.mark.parametrize("fault", ["eio", "fsync eio"])
async def test_a_broken_disk_ends_the_process_with_nothing_acknowledged(
    world: World, tmp_path: Path, fault: str
) -> None:
    disk = FaultyDisk()
    collector = Collector(world, tmp_path / "x.jsonl", disk=disk)
    for i in range(3):
        await world.publish(result(i))
    with pytest.raises(BaseExceptionGroup) as broken:
        await crashes(world, collector, lambda: disk.fail_next(fault))
    assert broken.group_contains(OutputBroken)
    assert await world.ready() == 3
    assert await world.ready(dead_queue().name) == 0
    again = Collector(world, tmp_path / "x.jsonl")
    async with process(world, again):
        await world.publish(result(3))
        await until(lambda: ids_in(tmp_path / "x.jsonl") == [0, 1, 2, 3])


async def crashes(world: World, collector: Collector, fault: Callable[[], None]) -> None:
    async with process(world, collector) as task:
        fault()  # after the output was opened, before anything is written
        await asyncio.wait([task], timeout=20)


class SlowRuns(WatchedRuns):
    """Does not answer the first times it is told of rows."""

    def __init__(self, failures: int) -> None:
        super().__init__()
        self._failures = failures

    async def mark(
        self,
        run: str,
        generation: str,
        shard: str,
        rows: Sequence[tuple[int, int]],
        totals: Totals,
    ) -> None:
        if rows and self._failures:
            self._failures -= 1
            raise JournalUnavailable("away")
        await super().mark(run, generation, shard, rows, totals)


async def test_nothing_is_a_tombstone_or_marked_before_its_row_is_durable(
    world: World, tmp_path: Path
) -> None:
    disk = FaultyDisk()
    collector = Collector(world, tmp_path / "x.jsonl", disk=disk)
    key = f"{RUN}.{GENERATION}/1/0"
    await world.journal.take(key, "agent-1")
    await world.publish(result(1))
    with pytest.raises(BaseExceptionGroup):
        await crashes(world, collector, lambda: disk.fail_next("fsync eio"))
    assert await world.marked() == 0
    assert not isinstance(await world.journal.take(key, "agent-1"), Committed)


async def test_nothing_is_acknowledged_before_it_is_marked(world: World, tmp_path: Path) -> None:
    world.runs = SlowRuns(failures=1_000)
    await world.register()
    collector = Collector(world, tmp_path / "x.jsonl")
    await world.publish(result(1))
    async with process(world, collector):
        await until(lambda: (tmp_path / "x.jsonl").stat().st_size > 0)
    assert await world.ready() == 1
    world.runs = SlowRuns(failures=1)
    await world.register()
    again = Collector(world, tmp_path / "x.jsonl")
    async with process(world, again):
        await world.publish(result(2))
        await again.sees(1)
    assert await world.ready() == 0
    assert await world.marked() == 2
    assert ids_in(tmp_path / "x.jsonl") == [1, 2]


async def test_a_sink_that_is_cancelled_gives_back_what_is_not_durable(
    world: World, tmp_path: Path
) -> None:
    collector = Collector(world, tmp_path / "x.jsonl")
    for i in range(5):
        await world.publish(result(i))
    async with process(world, collector) as task:
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
    last = Collector(world, tmp_path / "x.jsonl")
    async with process(world, last):
        await until(lambda: len(ids_in(tmp_path / "x.jsonl")) == 5)
    assert await world.ready() == 0


def in_parts(root: Path) -> list[int]:
    return sorted(
        json.loads(line)["warren"]["task_index"]
        for part in list_parts(root)
        for line in read_part(part.path)
    )


def standing(world: World, root: Path) -> Callable[[Broker, asyncio.Event], Any]:
    return lambda broker, stop: write_all_runs(
        root, broker, world.journal, world.runs, stop=stop, batching=FAST, reconcile_s=0.05
    )


async def test_a_standing_sink_splits_by_run_and_shard(world: World, tmp_path: Path) -> None:
    for run in ("run-a", "run-b"):
        for i in range(10):
            await world.publish(result(i, run=run), "sink")
    async with process(world, standing(world, tmp_path)):
        await until(lambda: {p.name for p in tmp_path.iterdir()} == {"run-a", "run-b"})
        await until(lambda: all(len(in_parts(p)) == 10 for p in tmp_path.iterdir()))
    assert in_parts(tmp_path / "run-a") == list(range(10))
    assert len({part.shard for part in list_parts(tmp_path / "run-a")}) == SINK_SHARDS
    for shard in range(SINK_SHARDS):
        assert await world.ready(sink_queue(shard).name) == 0


async def test_two_standing_sinks_write_each_rollout_once(world: World, tmp_path: Path) -> None:
    for _ in range(3):
        for i in range(20):
            await world.publish(result(i), "sink")
    first, second = standing(world, tmp_path), standing(world, tmp_path)
    async with process(world, first), process(world, second):
        await until(lambda: (tmp_path / RUN).is_dir() and len(in_parts(tmp_path / RUN)) >= 20)
    assert in_parts(tmp_path / RUN) == list(range(20))


async def test_a_record_that_was_lost_is_rebuilt_while_nothing_else_happens(
    world: World, tmp_path: Path
) -> None:
    for i in range(6):
        await world.publish(result(i), "sink")
    async with process(world, standing(world, tmp_path)):
        await until(lambda: (tmp_path / RUN).is_dir() and len(in_parts(tmp_path / RUN)) == 6)
        await until(lambda: len(world.runs.told) == 6)
        await world.runs.forget(RUN)
        world.runs.told.clear()
        await world.register()
        await world.runs.published(RUN, GENERATION, 10, True)
        await until(lambda: len(world.runs.told) == 6)


async def test_a_new_generation_is_kept_apart_from_old_parts(world: World, tmp_path: Path) -> None:
    await world.publish(result(1), "sink")
    async with process(world, standing(world, tmp_path)):
        await until(lambda: (tmp_path / RUN).is_dir() and in_parts(tmp_path / RUN) == [1])
    await world.register(generation="g2")
    await world.publish(result(1, generation="g2", reward=0.5), "sink")
    await world.publish(result(2, generation="g1"), "sink")
    async with process(world, standing(world, tmp_path)):
        aside = tmp_path / f"{RUN}.g2"
        await until(lambda: aside.is_dir() and in_parts(aside) == [1])
    assert in_parts(tmp_path / RUN) == [1]


@pytest.mark.parametrize(
    ("known", "ours", "enough"),
    [(b"", b"", True), (b"\x80", b"\x80\0", True), (b"\x80", b"\xc0", False), (b"", b"\1", False)],
)
def test_bitmaps_are_compared_from_their_first_bit(known: bytes, ours: bytes, enough: bool) -> None:
    assert covers(known, ours) is enough
