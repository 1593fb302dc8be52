"""A sink acknowledges what is durable and marked, whatever happens in between."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path

import pytest

from broker.errors import JournalUnavailable
from broker.journal.base import Committed
from broker.journal.runs import Totals
from broker.topology import dead_queue
from sinks.base import OutputBroken
from tests.support.disks import FaultyDisk
from tests.support.rollouts import result
from tests.support.sink_world import (
    GENERATION,
    RUN,
    Collector,
    WatchedRuns,
    World,
    ids_in,
    opened,
    process,
    until,
)


@pytest.fixture
async def world() -> AsyncGenerator[World]:
    async with opened() as made:
        yield made


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


async def crashes(world: World, collector: Collector, fault: Callable[[], None]) -> None:
    async with process(world, collector) as task:
        fault()  # after the output was opened, before anything is written
        await asyncio.wait([task], timeout=20)


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
