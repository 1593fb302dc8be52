"""What every journal promises of replies: its store tells the owner, or it says that it did not."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from broker import codec
from broker.journal.base import Finished, Journal
from broker.journal.redis import TOLD_BYTES
from broker.messages import Reply
from tests.support.journals import Kind, call, finished, listeners, new_key, taken


class Ear:
    """What one inbox, which no other test knows, hears."""

    def __init__(self) -> None:
        self.inbox = new_key()
        self.heard: asyncio.Queue[bytes] = asyncio.Queue()

    async def replies(self, count: int) -> list[Reply]:
        async with asyncio.timeout(10):
            return [codec.decode(Reply, await self.heard.get()) for _ in range(count)]


@pytest.fixture
async def ear(journal: Journal, kind: Kind, redis_url: str) -> AsyncIterator[Ear]:
    ear = Ear()
    listening = asyncio.create_task(
        journal.listen(ear.inbox, ear.heard.put_nowait, lambda: pytest.fail("nothing was lost"))
    )
    if kind == "redis":
        await listeners(redis_url, ear.inbox)
    yield ear
    listening.cancel()
    await asyncio.wait([listening])


@pytest.mark.parametrize("size", [1, 31, 32, 255, 256, 2000, TOLD_BYTES])
async def test_a_result_is_told_whole_by_a_store_that_says_so_and_by_no_other(
    journal: Journal, key: str, ear: Ear, kind: Kind, size: int
) -> None:
    run = await taken(journal, key, ear.inbox)
    result = bytes(range(256)) * (size // 256) + bytes(size % 256)
    done = await finished(journal, call(run, key, "3.tool.0", executor="x"), result)
    assert done == Finished(result, True, ear.inbox, told=kind == "redis")
    if done.told:
        assert await ear.replies(1) == [
            Reply(rollout=key, epoch=run.epoch, path="3.tool.0", result=result)
        ]
    assert ear.heard.empty()


async def test_of_a_long_result_is_told_that_it_is_there_and_it_can_be_read(
    journal: Journal, key: str, ear: Ear, kind: Kind
) -> None:
    run = await taken(journal, key, ear.inbox)
    result = bytes(range(256)) * (TOLD_BYTES // 256) + b"x"
    done = await finished(journal, call(run, key, "3.tool.0", executor="x"), result)
    assert done == Finished(result, True, ear.inbox, told=kind == "redis")
    if done.told:
        assert await ear.replies(1) == [Reply(rollout=key, epoch=run.epoch, path="3.tool.0")]
        assert await journal.result(key, run.epoch, "3.tool.0") == result
    assert ear.heard.empty()


async def test_with_its_state_a_result_is_told_too(
    journal: Journal, key: str, ear: Ear, kind: Kind
) -> None:
    run = await taken(journal, key, ear.inbox)
    ref = call(run, key, executor="x")
    done = await journal.finish(ref, b"result", state=b"state", state_version=0)
    assert isinstance(done, Finished)
    assert done.told == (kind == "redis")
    if done.told:
        assert [reply.result for reply in await ear.replies(1)] == [b"result"]


async def test_what_is_empty_or_no_executors_is_not_told(
    journal: Journal, key: str, ear: Ear
) -> None:
    run = await taken(journal, key, ear.inbox)
    for n, (executor, result) in enumerate((("", b"r"), ("x", b""), ("", bytes(TOLD_BYTES + 1)))):
        ref = call(run, key, str(n), executor=executor)
        assert await journal.finish(ref, result) == Finished(result, True, ear.inbox)
    assert ear.heard.empty()


async def test_a_result_that_came_second_is_not_told(journal: Journal, key: str, ear: Ear) -> None:
    run = await taken(journal, key, ear.inbox)
    first = await finished(journal, call(run, key, executor="x"), b"first")
    second = await journal.finish(call(run, key, executor="y"), b"second")
    assert second == Finished(b"first", False, ear.inbox)
    if first.told:
        assert [reply.result for reply in await ear.replies(1)] == [b"first"]
    assert ear.heard.empty()


async def test_the_current_owner_is_told_and_nobody_where_that_one_does_not_listen(
    journal: Journal, key: str, ear: Ear, kind: Kind
) -> None:
    run = await taken(journal, key, "gone")
    assert await finished(journal, call(run, key, executor="x")) == Finished(
        b"result", True, "gone"
    )
    await journal.end_lease("gone")
    await taken(journal, key, ear.inbox)
    done = await finished(journal, call(run, key, "1", executor="x", held=1))
    assert done.told == (kind == "redis")
    if done.told:
        assert [reply.path for reply in await ear.replies(1)] == ["1"]
    await journal.release(key, run.epoch, ear.inbox)
    assert await finished(journal, call(run, key, "2", executor="x")) == Finished(
        b"result", True, ""
    )
    assert ear.heard.empty()
