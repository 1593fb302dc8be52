"""What every journal promises of results that nobody owned while they were worked out."""

import asyncio
import time
from pathlib import Path

from broker.journal.base import Committed, Finished, Gone, Journal, Owned, Stored
from tests.support.journals import ARRAYS, Kind, call, finished, new_key, opened_journal, taken


async def kept(journal: Journal, key: str, result: bytes, request: bytes = b"request") -> object:
    return await journal.keep_first(key, "0", request, result)


async def test_the_first_one_is_kept_and_every_other_hears_of_it(
    journal: Journal, key: str
) -> None:
    assert await kept(journal, key, ARRAYS) == Stored(b"request", ARRAYS)
    assert await kept(journal, key, b"second") == Stored(b"request", ARRAYS)
    assert await kept(journal, key, b"third", b"another") == Stored(b"request", ARRAYS)


async def test_of_many_at_once_all_hear_of_the_same(journal: Journal, key: str) -> None:
    async with asyncio.TaskGroup() as group:
        said = [group.create_task(kept(journal, key, b"%d" % n)) for n in range(20)]
    assert len({str(each.result()) for each in said}) == 1


async def test_who_takes_it_then_finds_the_result_and_no_take_without_progress(
    journal: Journal, key: str
) -> None:
    before = time.time()
    await kept(journal, key, b"result")
    run = await taken(journal, key)
    assert run.results == {"0": Stored(b"request", b"result")}
    assert (run.attempt, run.idle_takes, run.strikes, run.ended) == (1, 1, 0, False)
    assert before - 1 <= run.first_taken_at <= time.time() + 1


async def test_it_takes_nothing_from_a_living_owner_who_hears_of_it_when_he_finishes(
    journal: Journal, key: str
) -> None:
    await journal.renew_lease("a")
    run = await taken(journal, key, "a")
    await kept(journal, key, b"first")
    assert await journal.take(key, "b") == Owned("a")
    done = await journal.finish(call(run, key), b"second")
    assert isinstance(done, Finished)
    assert (done.result, done.won) == (b"first", False)
    assert await journal.finish(call(run, key, request=b"another"), b"third") == Gone()
    again = await taken(journal, key, "a")
    assert (again.epoch, again.first_taken_at) == (run.epoch, run.first_taken_at)
    assert again.idle_takes == 1


async def test_what_an_owner_finished_stays(journal: Journal, key: str) -> None:
    run = await taken(journal, key)
    await finished(journal, call(run, key), b"first")
    assert await kept(journal, key, b"second") == Stored(b"request", b"first")


async def test_it_counts_as_a_call_that_was_finished(journal: Journal, key: str) -> None:
    await kept(journal, key, b"result")
    run = await taken(journal, key)
    assert await journal.finish(call(run, key, "1", held=1), b"one") == Finished(
        b"one", True, "inbox"
    )


async def test_after_a_restart_it_belongs_to_the_new_attempt(journal: Journal, key: str) -> None:
    first = await taken(journal, key)
    assert await journal.restart(key, first.epoch) == 2
    await kept(journal, key, b"result")
    run = await taken(journal, key)
    assert (run.attempt, run.results) == (2, {"0": Stored(b"request", b"result")})
    assert run.first_taken_at > 0


async def test_nothing_is_kept_of_a_committed_rollout_nor_of_its_verifier(
    journal: Journal, key: str
) -> None:
    await journal.committed([key])
    assert await kept(journal, key, b"result") == Committed()
    assert await kept(journal, f"{key}/verify", b"result") == Committed()


async def test_a_verdict_that_was_kept_goes_with_its_rollout(journal: Journal, key: str) -> None:
    verification = f"{key}/verify"
    await kept(journal, verification, b"result")
    await journal.committed([key])
    assert await kept(journal, verification, b"result") == Committed()
    await journal.forget([key])
    assert await kept(journal, verification, b"another") == Stored(b"request", b"another")


async def test_takes_that_left_no_record_are_counted_where_there_is_none(
    journal: Journal, key: str
) -> None:
    takes = [await journal.take(key, "a", uncounted=1) for _ in range(2)]
    assert [run.idle_takes for run in takes] == [2, 3]  # type: ignore[union-attr]
    await kept(journal, other := new_key(), b"result")
    assert (await journal.take(other, "a", uncounted=1)).idle_takes == 1  # type: ignore[union-attr]


async def test_it_outlasts_the_process_where_the_store_does(
    kind: Kind, tmp_path: Path, redis_url: str, key: str
) -> None:
    async with opened_journal(kind, tmp_path, redis_url) as journal:
        await kept(journal, key, b"result")
    async with opened_journal(kind, tmp_path, redis_url) as journal:
        known = Stored(b"request", b"again" if kind == "memory" else b"result")
        assert await kept(journal, key, b"again") == known
