"""What every journal promises: the first result wins, with its state, and is seen."""

import asyncio

from broker.journal.base import Finished, Go, Gone, Journal, Overview, Stored
from tests.support.journals import ARRAYS, call, finished, taken


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


async def test_the_owners_sweep_sees_results_claims_and_state(journal: Journal, key: str) -> None:
    run = await taken(journal, key, "owner")
    await journal.begin(call(run, key, "0"))
    await journal.finish(call(run, key, "0"), b"r", state=b"s", state_version=0)
    await journal.begin(call(run, key, "1"))
    seen = await journal.look(key, run.epoch, ["0", "1", "2"])
    stored, out, none = {"0": Stored(b"request", b"r")}, frozenset({"1"}), frozenset[str]()
    assert seen == Overview("owner", stored, out, out, b"s", 1)
    assert await journal.look(key, run.epoch, []) == Overview("owner", {}, none, none, b"s", 1)


async def test_one_result_is_read_by_its_path_within_its_epoch(journal: Journal, key: str) -> None:
    verification = f"{key}/verify"
    for record in (key, verification):
        assert await journal.result(record, "epoch", "3.tool.0") is None
        run = await taken(journal, record)
        ref = call(run, record, "3.tool.0", executor="x")
        await journal.begin(ref)
        assert await journal.result(record, run.epoch, "3.tool.0") is None
        await journal.finish(ref, ARRAYS)
        assert await journal.result(record, run.epoch, "3.tool.0") == ARRAYS
        assert await journal.result(record, run.epoch, "3") is None
        assert await journal.result(record, "another", "3.tool.0") is None
        await journal.restart(record, run.epoch)
        fresh = await taken(journal, record)
        assert await journal.result(record, fresh.epoch, "3.tool.0") is None
        await finished(journal, call(fresh, record, "3.tool.0"), b"again")
        assert await journal.result(record, run.epoch, "3.tool.0") is None
        assert await journal.result(record, fresh.epoch, "3.tool.0") == b"again"
    await journal.committed([key])
    for record in (key, verification):
        for epoch in (fresh.epoch, ""):
            assert await journal.result(record, epoch, "3.tool.0") is None


async def test_a_replaced_owner_sees_who_replaced_it(journal: Journal, key: str) -> None:
    run = await taken(journal, key, "old")
    await taken(journal, key, "new")
    seen = await journal.look(key, run.epoch, ["0"])
    assert isinstance(seen, Overview)
    assert seen.inbox == "new"
