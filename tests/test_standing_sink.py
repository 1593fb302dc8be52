"""Standing sinks: rows of all runs, by run and shard, and records that they keep true."""

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from broker.topology import SINK_SHARDS, sink_queue
from sinks.part_names import list_parts
from sinks.parts import PartFiles
from sinks.rows import row_for
from sinks.worker import covers
from tests.support.rollouts import result
from tests.support.sink_world import (
    GENERATION,
    RUN,
    World,
    in_parts,
    opened,
    process,
    standing,
    until,
)


@pytest.fixture
async def world() -> AsyncGenerator[World]:
    async with opened() as made:
        yield made


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


async def test_a_merge_that_was_cut_off_is_ended_though_nothing_comes_for_its_run(
    world: World, tmp_path: Path
) -> None:
    output = PartFiles(tmp_path / RUN, run=RUN, block=2)
    for i in range(2):
        output.commit([row_for(result(i))])
    void = {path: path.read_bytes() for path in (tmp_path / RUN).glob("part-*")}
    output.tidy()
    for path, data in void.items():
        path.write_bytes(data)  # as by a sink that died before it had removed them
    async with process(world, standing(world, tmp_path)):
        await until(lambda: not any(path.exists() for path in void))
    assert in_parts(tmp_path / RUN) == [0, 1]


@pytest.mark.parametrize(
    ("known", "ours", "enough"),
    [(b"", b"", True), (b"\x80", b"\x80\0", True), (b"\x80", b"\xc0", False), (b"", b"\1", False)],
)
def test_bitmaps_are_compared_from_their_first_bit(known: bytes, ours: bytes, enough: bool) -> None:
    assert covers(known, ours) is enough
