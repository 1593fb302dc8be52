"""What every journal promises: an owner gives back what the journal lost."""

from msgspec.structs import replace

from broker.journal.base import (
    Committed,
    Finished,
    Found,
    Go,
    Journal,
    Lost,
    Overview,
    Stored,
    Upload,
)
from tests.support.journals import ARRAYS, call, finished, new_key, taken, uploaded


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
