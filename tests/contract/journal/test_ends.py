"""What every journal promises: restarts, strikes, ends, tombstones, forgetting."""

import asyncio
from pathlib import Path

from broker.journal.base import Committed, Go, Gone, Journal
from tests.support.journals import Kind, call, finished, new_key, opened_journal, taken, uploaded


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
