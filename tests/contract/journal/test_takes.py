"""What every journal promises: who owns a rollout, by takes, leases and releases."""

import asyncio
import time
from pathlib import Path

from broker.journal.base import Committed, Journal, Owned, Run
from tests.support.journals import Kind, call, eventually, finished, new_key, opened_journal, taken


async def test_an_unknown_rollout_is_taken_with_a_fresh_record(journal: Journal, key: str) -> None:
    before = time.time()
    run = await taken(journal, key)
    assert (run.attempt, run.idle_takes, run.strikes, run.results) == (1, 1, 0, {})
    assert (run.state, run.state_version, run.ended) == (b"", 0, False)
    assert before - 1 <= run.first_taken_at <= time.time() + 1


async def test_every_take_keeps_the_epoch_and_its_first_time(journal: Journal, key: str) -> None:
    first, again, other = [await taken(journal, key, inbox) for inbox in ("a", "a", "b")]
    assert first.epoch == again.epoch == other.epoch
    assert first.first_taken_at == again.first_taken_at == other.first_taken_at


async def test_epochs_are_unique(journal: Journal, key: str) -> None:
    assert (await taken(journal, key)).epoch != (await taken(journal, new_key())).epoch


async def test_a_living_owner_keeps_its_rollout(journal: Journal, key: str) -> None:
    await journal.renew_lease("a")
    await taken(journal, key, "a")
    assert await journal.take(key, "b") == Owned("a")
    await taken(journal, key, "a")


async def test_an_owner_whose_lease_ran_out_loses_its_rollout(
    kind: Kind, tmp_path: Path, redis_url: str, key: str
) -> None:
    async with opened_journal(kind, tmp_path, redis_url, lease_s=0.3) as journal:
        await journal.renew_lease(key)
        await taken(journal, key, key)

        async def is_taken() -> bool:
            return isinstance(await journal.take(key, "b"), Run)

        assert not await is_taken()
        await eventually(is_taken)


async def test_a_lease_that_is_renewed_holds(
    kind: Kind, tmp_path: Path, redis_url: str, key: str
) -> None:
    async with opened_journal(kind, tmp_path, redis_url, lease_s=1.0) as journal:
        await taken(journal, key, key)
        for _ in range(6):
            await journal.renew_lease(key)
            await asyncio.sleep(0.2)
        assert await journal.take(key, "b") == Owned(key)


async def test_a_worker_that_goes_ends_its_lease_at_once(journal: Journal, key: str) -> None:
    await journal.renew_lease("a")
    await taken(journal, key, "a")
    await journal.end_lease("a")
    await taken(journal, key, "b")


async def test_takes_without_progress_are_counted(journal: Journal, key: str) -> None:
    assert [(await taken(journal, key)).idle_takes for _ in range(3)] == [1, 2, 3]


async def test_a_moved_copy_that_comes_back_is_not_counted(journal: Journal, key: str) -> None:
    await taken(journal, key)
    assert (await taken(journal, key, counts=False)).idle_takes == 1


async def test_a_finished_call_is_progress(journal: Journal, key: str) -> None:
    run = await taken(journal, key)
    await taken(journal, key)
    await finished(journal, call(run, key))
    assert (await taken(journal, key)).idle_takes == 1


async def test_a_result_that_came_second_is_no_progress(journal: Journal, key: str) -> None:
    run = await taken(journal, key)
    await finished(journal, call(run, key))
    await taken(journal, key)
    await journal.finish(call(run, key), b"late")
    assert (await taken(journal, key)).idle_takes == 2


async def test_a_polite_release_gives_up_ownership_and_counts_nothing(
    journal: Journal, key: str
) -> None:
    await journal.renew_lease("a")
    run = await taken(journal, key, "a")
    await journal.release(key, run.epoch, "a")
    await journal.release(key, run.epoch, "a")
    assert (await taken(journal, key, "b")).idle_takes == 1


async def test_a_release_by_a_former_owner_changes_nothing(journal: Journal, key: str) -> None:
    run = await taken(journal, key, "a")
    await journal.renew_lease("b")
    await taken(journal, key, "b")
    await journal.release(key, run.epoch, "a")
    await journal.release(key, "another epoch", "b")
    assert await journal.take(key, "c") == Owned("b")
    assert (await taken(journal, key, "b")).idle_takes == 3


async def test_releasing_an_unknown_rollout_makes_no_record(journal: Journal, key: str) -> None:
    await journal.release(key, "epoch", "a")
    assert (await taken(journal, key)).idle_takes == 1


async def test_a_rollout_that_is_forgotten_begins_afresh(journal: Journal, key: str) -> None:
    first = await taken(journal, key)
    await finished(journal, call(first, key))
    await journal.committed([key])
    assert await journal.take(key, "a") == Committed()
    await journal.forget([key, new_key()])
    again = await taken(journal, key, "a")
    assert (again.attempt, again.results, again.epoch != first.epoch) == (1, {}, True)
    assert isinstance(await journal.take(f"{key}/verify", "v"), Run)
