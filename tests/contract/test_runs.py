"""What every record of runs promises (broker/journal/base.py), one body over the three."""

import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from broker.journal.runs import RunInfo, Runs, Totals
from tests.support.journals import Kind, eventually, opened_runs


@pytest.fixture
async def runs(kind: Kind, tmp_path: Path, redis_url: str) -> AsyncIterator[Runs]:
    async with opened_runs(kind, tmp_path, redis_url) as runs:
        yield runs


@pytest.fixture
def run() -> str:
    return f"run-{uuid.uuid4().hex[:12]}"


def info(run: str, generation: str = "g", created_at: float = 1000.25) -> RunInfo:
    return RunInfo(
        run=run,
        generation=generation,
        environment="math",
        model="Qwen/Qwen2.5-7B",
        repeats=2,
        created_at=created_at,
    )


ONE = Totals(completed=2, failed=1, failed_by_kind={"tool": 1}, reward_sum=0.5, rewarded=2)
TWO = Totals(completed=1, failed=3, failed_by_kind={"tool": 1, "infra": 2}, cost_usd=0.25)


async def test_an_unknown_run_has_no_standing(runs: Runs, run: str) -> None:
    assert await runs.progress(run) is None
    assert await runs.committed(run, "g", 0) == b""
    assert not await runs.cancel(run)
    assert not await runs.is_cancelled(run)
    await runs.forget(run)


async def test_a_registered_run_stands_at_nothing(runs: Runs, run: str) -> None:
    await runs.register(info(run))
    progress = await runs.progress(run)
    assert progress is not None
    assert progress.info == info(run)
    assert (progress.published, progress.complete, progress.committed) == (0, False, 0)
    assert (progress.cancelled, progress.totals) == (False, Totals())


async def test_rows_are_marked_once_however_often(runs: Runs, run: str) -> None:
    await runs.register(info(run))
    for _ in range(2):
        await runs.mark(run, "g", "0", [(0, 0), (9, 0), (9, 1)], ONE)
    progress = await runs.progress(run)
    assert progress is not None
    assert (progress.committed, progress.totals) == (3, ONE)
    assert await runs.committed(run, "g", 0) == bytes([0x80, 0x40])
    assert await runs.committed(run, "g", 1) == bytes([0x00, 0x40])


async def test_totals_are_summed_over_shards_and_absolute_in_each(runs: Runs, run: str) -> None:
    await runs.register(info(run))
    await runs.mark(run, "g", "0", [(0, 0)], TWO)
    await runs.mark(run, "g", "0", [(1, 0)], ONE)
    await runs.mark(run, "g", "1", [], TWO)
    progress = await runs.progress(run)
    assert progress is not None
    assert progress.totals == Totals(
        completed=3,
        failed=4,
        failed_by_kind={"tool": 2, "infra": 2},
        reward_sum=0.5,
        rewarded=2,
        cost_usd=0.25,
    )


async def test_marks_of_a_run_that_nobody_knows_are_kept(runs: Runs, run: str) -> None:
    await runs.mark(run, "g", "0", [(0, 0), (1, 1)], ONE)
    await runs.published(run, "g", 4, True)
    assert await runs.progress(run) is None
    await runs.register(info(run))
    progress = await runs.progress(run)
    assert progress is not None
    assert (progress.committed, progress.totals, progress.published) == (2, ONE, 4)


async def test_registering_again_keeps_marks_and_cancellation(runs: Runs, run: str) -> None:
    await runs.register(info(run))
    await runs.mark(run, "g", "0", [(0, 0)], ONE)
    await runs.cancel(run)
    await runs.register(info(run))
    progress = await runs.progress(run)
    assert progress is not None
    assert (progress.committed, progress.cancelled) == (1, True)


async def test_a_new_generation_starts_afresh(runs: Runs, run: str) -> None:
    await runs.register(info(run, "g1", 1.0))
    await runs.mark(run, "g1", "0", [(0, 0)], ONE)
    await runs.published(run, "g1", 5, True)
    await runs.cancel(run)
    await runs.register(info(run, "g2", 2.0))
    await runs.register(info(run, "g1", 1.0))  # late, of a producer that has been replaced
    await runs.mark(run, "g1", "0", [(1, 0)], ONE)
    progress = await runs.progress(run)
    assert progress is not None
    assert progress.info == info(run, "g2", 2.0)
    assert (progress.committed, progress.published, progress.complete) == (0, 0, False)
    assert not progress.cancelled
    assert await runs.committed(run, "g1", 0) == bytes([0xC0])


async def test_the_watermark_only_rises(runs: Runs, run: str) -> None:
    await runs.register(info(run))
    standings = []
    for count, complete in [(5, False), (3, True), (5, True), (9, False)]:
        await runs.published(run, "g", count, complete)
        progress = await runs.progress(run)
        assert progress is not None
        standings.append((progress.published, progress.complete))
    assert standings == [(5, False), (5, False), (5, True), (9, False)]


async def test_all_runs_are_listed_newest_first(runs: Runs) -> None:
    word = uuid.uuid4().hex[:12]
    names = [f"{word}-{n}" for n in range(3)]
    for age, name in enumerate(names):
        await runs.register(info(name, created_at=3e9 - age))
    listed = [p.info.run for p in await runs.list()]
    assert [name for name in listed if name.startswith(word)] == names


async def test_a_cancelled_run_is_seen_within_seconds(runs: Runs, run: str) -> None:
    await runs.register(info(run))
    assert not await runs.is_cancelled(run)
    assert await runs.cancel(run)
    await eventually(lambda: runs.is_cancelled(run), within_s=5.0)


async def test_a_forgotten_run_leaves_nothing(runs: Runs, run: str) -> None:
    await runs.register(info(run))
    await runs.mark(run, "g", "0", [(0, 0), (0, 1)], ONE)
    await runs.published(run, "g", 2, True)
    await runs.forget(run)
    assert await runs.progress(run) is None
    assert run not in [p.info.run for p in await runs.list()]
    await runs.register(info(run))
    progress = await runs.progress(run)
    assert progress is not None
    assert (progress.committed, progress.published, progress.totals) == (0, 0, Totals())


async def test_many_rows_are_marked_at_once(runs: Runs, run: str) -> None:
    await runs.register(info(run))
    rows = [(index, repeat) for index in range(3000) for repeat in range(2)]
    await runs.mark(run, "g", "0", rows, Totals(completed=len(rows)))
    progress = await runs.progress(run)
    assert progress is not None
    assert progress.committed == len(rows)
    assert await runs.committed(run, "g", 1) == bytes([0xFF]) * 375
