"""What every journal promises (broker/journal/base.py), one body over the three."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from broker.journal.base import (
    Busy,
    CallRef,
    Committed,
    Duplicate,
    Finished,
    Found,
    Go,
    Gone,
    Journal,
    Lost,
    Mismatch,
    Overview,
    Owned,
    Run,
    Stored,
    Upload,
)
from tests.support.journals import KINDS, Kind, call, eventually, new_key, opened_journal, taken

ARRAYS = bytes(range(256)) * 64


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


@pytest.fixture
def redis_url(kind: Kind, request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue("redis_server").url) if kind == "redis" else ""


@pytest.fixture
async def journal(kind: Kind, tmp_path: Path, redis_url: str) -> AsyncIterator[Journal]:
    async with opened_journal(kind, tmp_path, redis_url) as journal:
        yield journal
        for inbox in ("a", "b", "new"):  # the store outlives the test
            await journal.end_lease(inbox)


@pytest.fixture
def key() -> str:
    return new_key()


async def finished(journal: Journal, ref: CallRef, result: bytes = b"result") -> Finished:
    """Claim and finish a call that can be."""
    assert isinstance(await journal.begin(ref), Go)
    done = await journal.finish(ref, result)
    assert isinstance(done, Finished), done
    return done


def uploaded(run: Run, key: str, *results: str, inbox: str = "inbox") -> Upload:
    return Upload(
        rollout=key,
        epoch=run.epoch,
        attempt=run.attempt,
        inbox=inbox,
        results={path: Stored(b"request", path.encode()) for path in results},
        first_taken_at=run.first_taken_at,
    )


# take and release


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


# begin


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


async def test_a_second_copy_of_a_claimed_call_is_dropped(journal: Journal, key: str) -> None:
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
    assert await journal.begin(other) == Busy()
    assert await journal.begin(replace(other, carrier="copy")) == Duplicate()
    assert await journal.begin(ours) == Go(2, b"", 0)
    assert isinstance(await journal.finish(ours, b"r"), Finished)
    assert await journal.begin(other) == Found(b"r", "inbox")


@pytest.mark.parametrize("how", ["ended", "ran out", "never had one", "forced"])
async def test_a_call_whose_executor_is_gone_is_begun_by_another(
    journal: Journal, key: str, how: str
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
    assert await journal.begin(other, force=how == "forced") == Go(2, b"", 0)


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


# finish


async def test_the_first_result_wins(journal: Journal, key: str) -> None:
    run = await taken(journal, key, "owner")
    ref = call(run, key)
    await journal.begin(ref)
    assert await journal.finish(ref, b"first") == Finished(b"first", True, "owner")
    assert await journal.finish(ref, b"second") == Finished(b"first", False, "owner")
    assert (await taken(journal, key)).results == {"0": Stored(b"request", b"first")}


async def test_results_of_one_moment_have_one_winner(journal: Journal, key: str) -> None:
    run = await taken(journal, key)
    await journal.begin(call(run, key))
    async with asyncio.TaskGroup() as group:
        done = [
            group.create_task(journal.finish(call(run, key), str(n).encode())) for n in range(20)
        ]
    answers = [task.result() for task in done]
    won = [a.result for a in answers if isinstance(a, Finished) and a.won]
    assert len(won) == 1
    assert {a.result for a in answers if isinstance(a, Finished)} == set(won)


async def test_a_replaced_claim_may_still_finish_first(journal: Journal, key: str) -> None:
    run = await taken(journal, key)
    await journal.begin(call(run, key, carrier="one"))
    await journal.begin(call(run, key, carrier="two"), force=True)
    first = await journal.finish(call(run, key, carrier="one"), b"slow")
    assert isinstance(first, Finished)
    assert first.won
    assert await journal.finish(call(run, key, carrier="two"), b"forced") == Finished(
        b"slow", False, "inbox"
    )


async def test_a_result_goes_to_the_current_owner(journal: Journal, key: str) -> None:
    run = await taken(journal, key, "old")
    await journal.begin(call(run, key))
    await taken(journal, key, "new")
    assert await journal.finish(call(run, key), b"r") == Finished(b"r", True, "new")


async def test_a_result_of_another_request_is_not_taken(journal: Journal, key: str) -> None:
    run = await taken(journal, key)
    await journal.begin(call(run, key))
    assert await journal.finish(call(run, key, request=b"other"), b"r") == Gone()
    await journal.finish(call(run, key), b"r")
    assert await journal.finish(call(run, key, request=b"other"), b"r") == Gone()


async def test_any_bytes_are_kept_as_they_are(journal: Journal, key: str) -> None:
    run = await taken(journal, key)
    ref = call(run, key, "3.tool.0", request=bytes(32))
    await finished(journal, ref, ARRAYS)
    await finished(journal, call(run, key, "4", held=1), b"")
    results = (await taken(journal, key)).results
    assert results == {"3.tool.0": Stored(bytes(32), ARRAYS), "4": Stored(b"request", b"")}


async def test_state_is_stored_with_the_result(journal: Journal, key: str) -> None:
    run = await taken(journal, key)
    await journal.begin(call(run, key))
    await journal.finish(call(run, key), b"r", state=ARRAYS, state_version=0)
    assert await journal.begin(call(run, key, "1", held=1)) == Go(1, ARRAYS, 1)
    await journal.finish(call(run, key, "1", held=1), b"r", state=b"", state_version=1)
    after = await taken(journal, key)
    assert (after.state, after.state_version) == (b"", 2)


async def test_state_that_somebody_moved_stores_nothing(journal: Journal, key: str) -> None:
    run = await taken(journal, key)
    for path in ("0", "1"):
        await journal.begin(call(run, key, path))
    await journal.finish(call(run, key, "0"), b"r", state=b"zero", state_version=0)
    late = await journal.finish(call(run, key, "1"), b"r", state=b"one", state_version=0)
    assert late == Gone()
    after = await taken(journal, key)
    assert (set(after.results), after.state, after.state_version) == ({"0"}, b"zero", 1)


async def test_a_result_without_state_leaves_the_state(journal: Journal, key: str) -> None:
    run = await taken(journal, key)
    await journal.finish(call(run, key), b"r", state=b"s", state_version=0)
    await finished(journal, call(run, key, "1"))
    after = await taken(journal, key)
    assert (after.state, after.state_version) == (b"s", 1)


# look


async def test_the_owners_sweep_sees_results_claims_and_state(journal: Journal, key: str) -> None:
    run = await taken(journal, key, "owner")
    await journal.begin(call(run, key, "0"))
    await journal.finish(call(run, key, "0"), b"r", state=b"s", state_version=0)
    await journal.begin(call(run, key, "1"))
    seen = await journal.look(key, run.epoch, ["0", "1", "2"])
    expected = Overview("owner", {"0": Stored(b"request", b"r")}, frozenset({"1"}), b"s", 1)
    assert seen == expected
    assert await journal.look(key, run.epoch, []) == Overview("owner", {}, frozenset(), b"s", 1)


async def test_a_replaced_owner_sees_who_replaced_it(journal: Journal, key: str) -> None:
    run = await taken(journal, key, "old")
    await taken(journal, key, "new")
    seen = await journal.look(key, run.epoch, ["0"])
    assert isinstance(seen, Overview)
    assert seen.inbox == "new"


# upload


async def test_an_upload_makes_an_absent_record_again(journal: Journal, key: str) -> None:
    lost = await taken(journal, new_key())
    upload = Upload(
        rollout=key,
        epoch=lost.epoch,
        attempt=3,
        inbox="owner",
        results={"0": Stored(b"request", ARRAYS)},
        state=b"s",
        state_version=4,
        first_taken_at=1234.5,
    )
    assert await journal.upload(upload)
    assert await journal.upload(upload)
    assert await journal.begin(call(lost, key, held=1)) == Found(ARRAYS, "owner")
    assert await journal.begin(call(lost, key, "1", held=1)) == Go(1, b"s", 4)
    run = await taken(journal, key)
    assert (run.epoch, run.attempt, run.first_taken_at) == (lost.epoch, 3, 1234.5)
    assert run.results == upload.results


async def test_calls_that_are_out_at_an_upload_count_as_begun_once(
    journal: Journal, key: str
) -> None:
    run = await taken(journal, new_key())
    upload = replace(uploaded(run, key, "0"), opened={"0": b"request", "1": b"request"})
    assert await journal.upload(upload)
    assert await journal.upload(upload)
    assert isinstance(await journal.begin(call(run, key, "0", held=1)), Found)
    assert await journal.begin(call(run, key, "1", held=1)) == Go(2, b"", 0)
    assert await journal.begin(call(run, key, "2", held=1)) == Go(1, b"", 0)
    assert isinstance(await journal.finish(call(run, key, "1", held=1), b"1"), Finished)
    assert list((await taken(journal, key)).results) == ["0", "1"]


async def test_an_upload_adds_what_is_missing(journal: Journal, key: str) -> None:
    run = await taken(journal, key)
    await finished(journal, call(run, key, "0"), b"0")
    await journal.begin(call(run, key, "1"))
    assert await journal.upload(uploaded(run, key, "0", "1", "2"))
    assert isinstance(await journal.begin(call(run, key, "3", held=3)), Go)
    assert await journal.begin(call(run, key, "3", held=4, carrier="x")) == Lost()
    after = await taken(journal, key)
    assert {path: stored.result for path, stored in after.results.items()} == {
        "0": b"0",
        "1": b"1",
        "2": b"2",
    }


async def test_an_upload_keeps_results_that_its_owner_has_not_heard_of(
    journal: Journal, key: str
) -> None:
    run = await taken(journal, key)
    await finished(journal, call(run, key, "9"), b"9")
    assert await journal.upload(uploaded(run, key, "0"))
    assert set((await taken(journal, key)).results) == {"0", "9"}


async def test_an_upload_never_mixes_two_histories(journal: Journal, key: str) -> None:
    run = await taken(journal, key)
    await finished(journal, call(run, key, "1"), b"went on without it")
    assert not await journal.upload(uploaded(run, key, "0", "1"))
    after = await taken(journal, key)
    assert after.results == {"1": Stored(b"request", b"went on without it")}


async def test_an_older_state_is_not_uploaded_over_a_newer_one(journal: Journal, key: str) -> None:
    run = await taken(journal, key)
    await journal.finish(call(run, key), b"0", state=b"new", state_version=0)
    assert await journal.upload(uploaded(run, key, "0"))
    assert (await taken(journal, key)).state == b"new"


async def test_an_upload_into_another_attempt_is_refused(journal: Journal, key: str) -> None:
    run = await taken(journal, key)
    await journal.restart(key, run.epoch)
    assert not await journal.upload(uploaded(run, key, "0"))
    assert (await taken(journal, key)).results == {}


async def test_an_upload_into_a_committed_rollout_is_refused(journal: Journal, key: str) -> None:
    run = await taken(journal, key)
    await journal.committed([key])
    assert not await journal.upload(uploaded(run, key, "0"))
    assert await journal.take(key, "a") == Committed()


async def test_an_upload_by_an_owner_that_was_replaced_is_refused(
    journal: Journal, key: str
) -> None:
    run = await taken(journal, key, "old")
    await journal.renew_lease("new")
    await taken(journal, key, "new")
    assert not await journal.upload(uploaded(run, key, "0", inbox="old"))
    await journal.end_lease("new")
    assert await journal.upload(uploaded(run, key, "0", inbox="old"))
    seen = await journal.look(key, run.epoch, [])
    assert isinstance(seen, Overview)
    assert seen.inbox == "old"


# restart and strike


async def test_a_restart_begins_a_new_attempt_with_nothing(journal: Journal, key: str) -> None:
    await journal.renew_lease("a")
    run = await taken(journal, key, "a")
    await journal.finish(call(run, key), b"r", state=b"s", state_version=0)
    await journal.begin(call(run, key, "1"))
    await journal.ended(key, run.epoch)
    assert await journal.restart(key, run.epoch) == 2
    fresh = await taken(journal, key, "b")
    assert fresh.epoch != run.epoch
    assert (fresh.attempt, fresh.results, fresh.idle_takes) == (2, {}, 1)
    assert (fresh.state, fresh.state_version, fresh.ended) == (b"", 0, False)
    assert await journal.begin(call(fresh, key, "1", carrier="new", request=b"n")) == Go(1, b"", 0)


async def test_a_restart_may_be_asked_again_until_somebody_takes_it(
    journal: Journal, key: str
) -> None:
    run = await taken(journal, key)
    assert await journal.restart(key, run.epoch) == 2
    assert await journal.restart(key, run.epoch) == 2
    fresh = await taken(journal, key)
    assert await journal.restart(key, run.epoch) is None
    assert (await taken(journal, key)).epoch == fresh.epoch
    assert await journal.restart(key, fresh.epoch) == 3


async def test_a_restart_counts_its_deadline_anew(journal: Journal, key: str) -> None:
    run = await taken(journal, key)
    await asyncio.sleep(0.01)
    await journal.restart(key, run.epoch)
    assert (await taken(journal, key)).first_taken_at > run.first_taken_at


async def test_a_rollout_that_the_journal_forgot_can_be_restarted(
    journal: Journal, key: str
) -> None:
    assert await journal.restart(key, "forgotten") == 2
    fresh = await taken(journal, key)
    assert (fresh.attempt, fresh.results) == (2, {})
    assert fresh.epoch != "forgotten"


async def test_a_committed_rollout_is_not_restarted(journal: Journal, key: str) -> None:
    run = await taken(journal, key)
    await journal.committed([key])
    assert await journal.restart(key, run.epoch) is None
    assert await journal.take(key, "a") == Committed()


async def test_strikes_are_counted_and_survive_a_restart(journal: Journal, key: str) -> None:
    run = await taken(journal, key)
    assert [await journal.strike(key, run.epoch) for _ in range(2)] == [1, 2]
    await journal.restart(key, run.epoch)
    assert await journal.strike(key, run.epoch) == 2
    assert (await taken(journal, key)).strikes == 2
    assert await journal.strike(new_key(), run.epoch) == 0


# ended and committed


async def test_an_ended_rollout_keeps_its_results(journal: Journal, key: str) -> None:
    run = await taken(journal, key)
    await finished(journal, call(run, key))
    await journal.ended(key, "another epoch")
    assert not (await taken(journal, key)).ended
    await journal.ended(key, run.epoch)
    again = await taken(journal, key)
    assert again.ended
    assert set(again.results) == {"0"}


async def test_a_committed_rollout_is_never_taken_again(journal: Journal, key: str) -> None:
    unknown = new_key()
    run = await taken(journal, key)
    await journal.committed([key, unknown])
    await journal.committed([key])
    await journal.ended(key, run.epoch)
    await journal.release(key, run.epoch, "inbox")
    for rollout in (key, unknown):
        assert await journal.take(rollout, "a") == Committed()
    await journal.committed([])


async def test_a_committed_rollout_takes_its_verifier_along(journal: Journal, key: str) -> None:
    verify = f"{key}/verify"
    await taken(journal, key)
    run = await taken(journal, verify, "verifier")
    await finished(journal, call(run, verify, "verify.0"))
    await journal.ended(verify, run.epoch)
    await journal.committed([key])
    assert await journal.begin(call(run, verify, "verify.0")) == Gone()
    assert await journal.finish(call(run, verify, "verify.0"), b"late") == Gone()
    assert not await journal.upload(uploaded(run, verify, "verify.0"))
    assert await journal.restart(verify, run.epoch) is None
    assert await journal.take(verify, "verifier") == Committed()


async def test_a_verifier_has_a_record_of_its_own(journal: Journal, key: str) -> None:
    run, verify = await taken(journal, key), await taken(journal, f"{key}/verify")
    assert run.epoch != verify.epoch
    await finished(journal, call(run, key))
    assert (await taken(journal, f"{key}/verify")).results == {}


async def test_many_rollouts_are_committed_at_once(journal: Journal) -> None:
    keys = [new_key() for _ in range(5000)]
    await journal.committed(keys)
    for key in (keys[0], keys[2500], keys[-1]):
        assert await journal.take(key, "a") == Committed()


async def test_what_nobody_changes_is_forgotten_in_the_end(
    kind: Kind, tmp_path: Path, redis_url: str, key: str
) -> None:
    tombstone = new_key()
    async with opened_journal(kind, tmp_path, redis_url, keep_s=0.2) as journal:
        first = await taken(journal, key)
        await journal.committed([tombstone])
        await asyncio.sleep(0.5)
        assert (await taken(journal, key)).epoch != first.epoch
        await taken(journal, tombstone)


async def test_names_of_any_letters_are_kept_apart(journal: Journal, key: str) -> None:
    odd = f"{key}{{ü}}:*"
    run = await taken(journal, odd, "ïnbox")
    await finished(journal, call(run, odd, "päth:1"))
    assert set((await taken(journal, odd)).results) == {"päth:1"}
    assert (await taken(journal, key)).results == {}
