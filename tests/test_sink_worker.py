"""The sink worker: results become rows, once; what can't be one is accounted for."""

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from broker import codec
from broker.base import Outgoing
from broker.journal.base import Committed
from broker.messages import Result
from broker.topology import (
    RESULT,
    dead_queue,
    kept_queue,
)
from sinks.jsonl import JsonlFile
from sinks.rows import row_for
from tests.support.rollouts import result
from tests.support.sink_world import GENERATION, RUN, Collector, World, ids_in, opened, process


@pytest.fixture
async def world() -> AsyncGenerator[World]:
    async with opened() as made:
        yield made


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
