"""What every journal promises: who works on a call, by claims and executors."""

import asyncio

import pytest
from msgspec.structs import replace

from broker.journal.base import (
    Busy,
    Duplicate,
    Finished,
    Found,
    Go,
    Gone,
    Journal,
    Lost,
    Mismatch,
    Overview,
)
from tests.support.journals import ARRAYS, call, finished, new_key, taken


async def test_a_call_of_an_unknown_rollout_means_a_lost_journal(
    journal: Journal, key: str
) -> None:
    run = await taken(journal, new_key())
    assert await journal.begin(call(run, key)) == Lost()
    assert await journal.finish(call(run, key), b"r") == Lost()
    assert await journal.look(key, run.epoch, ["0"]) == Lost()


async def test_a_new_call_is_claimed(journal: Journal, key: str) -> None:
    run = await taken(journal, key)
    assert await journal.begin(call(run, key)) == Go(1, b"", 0)


async def test_the_same_carrier_begins_again_and_is_counted(journal: Journal, key: str) -> None:
    run = await taken(journal, key)
    starts = [await journal.begin(call(run, key)) for _ in range(3)]
    assert starts == [Go(1, b"", 0), Go(2, b"", 0), Go(3, b"", 0)]


async def test_a_second_copy_of_a_call_that_waits_on_a_ladder_is_dropped(
    journal: Journal, key: str
) -> None:
    run = await taken(journal, key)
    await journal.begin(call(run, key, carrier="one"))
    assert await journal.begin(call(run, key, carrier="two")) == Duplicate()
    assert await journal.begin(call(run, key, carrier="one")) == Go(2, b"", 0)


async def test_force_replaces_a_claim(journal: Journal, key: str) -> None:
    run = await taken(journal, key)
    await journal.begin(call(run, key, carrier="one"))
    assert await journal.begin(call(run, key, carrier="two"), force=True) == Go(2, b"", 0)
    assert await journal.begin(call(run, key, carrier="one")) == Duplicate()


async def test_calls_begun_at_once_are_claimed_once(journal: Journal, key: str) -> None:
    run = await taken(journal, key)
    async with asyncio.TaskGroup() as group:
        begun = [
            group.create_task(journal.begin(call(run, key, carrier=str(n)))) for n in range(20)
        ]
    answers = [task.result() for task in begun]
    assert sum(isinstance(answer, Go) for answer in answers) == 1
    assert sum(isinstance(answer, Duplicate) for answer in answers) == 19


async def test_a_call_that_a_living_executor_has_in_hand_is_left_to_it(
    journal: Journal, key: str
) -> None:
    run = await taken(journal, key)
    ours, other = (call(run, key, executor=f"{key}-{name}") for name in ("ours", "other"))
    await journal.renew_lease(ours.executor, 30.0)
    assert await journal.begin(ours) == Go(1, b"", 0)
    again = replace(other, carrier="published again")
    assert [await journal.begin(copy) for copy in (other, again)] == [Busy(), Busy()]
    assert await journal.begin(ours) == Go(2, b"", 0)
    assert isinstance(await journal.finish(ours, b"r"), Finished)
    assert [await journal.begin(copy) for copy in (other, again)] == [Found(b"r", "inbox")] * 2


@pytest.mark.parametrize("carrier", ["carrier", "published again"])
@pytest.mark.parametrize("how", ["ended", "ran out", "never had one", "forced"])
async def test_a_call_whose_executor_is_gone_is_begun_by_another(
    journal: Journal, key: str, how: str, carrier: str
) -> None:
    run = await taken(journal, key)
    dead, other = (call(run, key, executor=f"{key}-{name}") for name in ("dead", "other"))
    if how != "never had one":
        await journal.renew_lease(dead.executor, 0.05 if how == "ran out" else 30.0)
    await journal.begin(dead)
    if how == "ended":
        await journal.end_lease(dead.executor)
    if how == "ran out":
        await asyncio.sleep(0.06)
    other = replace(other, carrier=carrier)
    assert await journal.begin(other, force=how == "forced") == Go(2, b"", 0)


async def test_of_two_copies_of_a_dead_executors_call_one_is_begun(
    journal: Journal, key: str
) -> None:
    """One that was published again, and the old one, which was redelivered late after all."""
    run = await taken(journal, key)
    await journal.begin(call(run, key, executor=f"{key}-dead"))
    late = call(run, key, executor=f"{key}-late")
    again = replace(late, carrier="published again", executor=f"{key}-again")
    for executor in (late.executor, again.executor):
        await journal.renew_lease(executor, 30.0)
    assert await journal.begin(again) == Go(2, b"", 0)
    assert await journal.begin(late) == Busy()
    assert isinstance(await journal.finish(again, b"r"), Finished)
    assert await journal.begin(late) == Found(b"r", "inbox")


async def test_a_claim_is_seen_as_long_as_its_executor_lives(journal: Journal, key: str) -> None:
    run = await taken(journal, key)
    paths = ["lives", "ended", "ran out", "put off", "nobody's", "done"]
    calls = {path: call(run, key, path, executor=f"{key}-{path}") for path in paths}
    for path, each in calls.items():
        await journal.renew_lease(each.executor, 0.05 if path == "ran out" else 30.0)
        if path != "nobody's":
            await journal.begin(each)
    await journal.end_lease(calls["ended"].executor)
    await journal.put_off(calls["put off"])
    await journal.end_lease(calls["put off"].executor)
    assert isinstance(await journal.finish(calls["done"], b"r"), Finished)
    await asyncio.sleep(0.06)
    seen = await journal.look(key, run.epoch, paths)
    assert isinstance(seen, Overview)
    assert seen.begun == {"lives", "ended", "ran out", "put off"}
    assert seen.claimed == {"lives", "put off"}
    assert set(seen.results) == {"done"}


async def test_a_call_that_was_put_off_is_for_whoever_gets_its_message_next(
    journal: Journal, key: str
) -> None:
    run = await taken(journal, key)
    ours, other = (call(run, key, executor=f"{key}-{name}") for name in ("ours", "other"))
    await journal.renew_lease(ours.executor, 30.0)
    await journal.begin(ours)
    await journal.put_off(other)
    assert await journal.begin(other) == Busy()
    await journal.put_off(ours)
    assert await journal.begin(replace(other, carrier="copy")) == Duplicate()
    assert await journal.begin(other) == Go(2, b"", 0)


async def test_a_finished_call_is_found_by_every_carrier(journal: Journal, key: str) -> None:
    run = await taken(journal, key, "owner")
    await finished(journal, call(run, key, carrier="one"), ARRAYS)
    for carrier in ("one", "two"):
        for force in (False, True):
            found = await journal.begin(call(run, key, carrier=carrier), force=force)
            assert found == Found(ARRAYS, "owner")


async def test_another_request_at_a_finished_path_is_a_mismatch(journal: Journal, key: str) -> None:
    run = await taken(journal, key, "owner")
    await finished(journal, call(run, key))
    assert await journal.begin(call(run, key, request=b"other")) == Mismatch("owner")


async def test_another_request_at_a_claimed_path_is_a_mismatch(journal: Journal, key: str) -> None:
    run = await taken(journal, key, "owner")
    await journal.begin(call(run, key))
    other = call(run, key, request=b"other")
    assert await journal.begin(other) == Mismatch("owner")
    assert await journal.begin(other, force=True) == Mismatch("owner")


async def test_an_owner_that_held_more_hears_that_the_journal_is_lost(
    journal: Journal, key: str
) -> None:
    run = await taken(journal, key)
    await finished(journal, call(run, key))
    assert await journal.begin(call(run, key, "1", held=2)) == Lost()
    assert await journal.finish(call(run, key, "1", held=2), b"r") == Lost()
    assert isinstance(await journal.begin(call(run, key, "1", held=1)), Go)


async def test_a_lost_journal_is_noticed_before_a_mismatch(journal: Journal, key: str) -> None:
    run = await taken(journal, key)
    await finished(journal, call(run, key))
    assert await journal.begin(call(run, key, request=b"other", held=2)) == Lost()


async def test_a_result_is_found_even_by_who_held_more(journal: Journal, key: str) -> None:
    run = await taken(journal, key)
    await finished(journal, call(run, key), b"r")
    assert await journal.begin(call(run, key, held=7)) == Found(b"r", "inbox")


async def test_a_call_of_an_older_attempt_is_gone(journal: Journal, key: str) -> None:
    run = await taken(journal, key)
    await journal.begin(call(run, key))
    await journal.restart(key, run.epoch)
    assert await journal.begin(call(run, key)) == Gone()
    assert await journal.finish(call(run, key), b"late") == Gone()
    assert await journal.look(key, run.epoch, ["0"]) == Gone()


async def test_a_call_of_a_committed_rollout_is_gone(journal: Journal, key: str) -> None:
    run = await taken(journal, key)
    await finished(journal, call(run, key))
    await journal.committed([key])
    assert await journal.begin(call(run, key)) == Gone()
    assert await journal.finish(call(run, key), b"late") == Gone()
    assert await journal.look(key, run.epoch, ["0"]) == Gone()
