"""Executors and their leases: a call is for one of them, and for the next one when that is gone."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import msgspec
import pytest

from broker.journal.base import Go
from broker.journal.memory import MemoryJournal
from broker.memory import MemoryBroker
from broker.messages import ToolCall
from broker.serve import Ack, Later
from tests.support.calls import tool_call
from tests.support.journals import taken
from workers.executor import Done, Executor, Postponed


class Two:
    """Two executors over one journal, and how often they worked."""

    def __init__(self) -> None:
        self.journal = MemoryJournal()
        node = MemoryBroker()
        self.one, self.other, self.dying = (
            Executor(node.connect(), self.journal) for _ in range(3)
        )
        self.begun: asyncio.Queue[None] = asyncio.Queue()
        self.finish = asyncio.Event()
        self.worked = 0

    async def work(self, go: Go) -> Done:
        self.worked += 1
        self.begun.put_nowait(None)
        await self.finish.wait()
        return Done(b"result")

    async def call(self) -> ToolCall:
        run = await taken(self.journal, "r.g/0/0")
        return tool_call(epoch=run.epoch, path="0.tool.0")


@pytest.fixture
async def two() -> AsyncIterator[Two]:
    async with AsyncExitStack() as stack:
        two = Two()
        await stack.enter_async_context(two.one.open())
        await stack.enter_async_context(two.other.open())
        yield two


async def test_a_copy_of_a_call_that_another_has_in_hand_waits_for_its_result(two: Two) -> None:
    call = await two.call()
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        first = group.create_task(two.one.execute(call, two.work))
        await two.begun.get()
        second = group.create_task(two.other.execute(call, two.work))
        done, _ = await asyncio.wait([second], timeout=0.6)  # longer than one look
        assert not done
        two.finish.set()
    assert (first.result(), second.result(), two.worked) == (Ack(), Ack(), 1)


async def test_a_call_that_is_cancelled_is_for_others_at_once(two: Two) -> None:
    call = await two.call()
    first = asyncio.create_task(two.one.execute(call, two.work))
    await two.begun.get()
    first.cancel()
    await asyncio.wait([first])
    assert first.cancelled()
    two.finish.set()
    async with asyncio.timeout(2):  # its lease would hold for 5 s
        assert await two.other.execute(call, two.work) == Ack()
    assert two.worked == 2


async def test_a_call_that_failed_unexpectedly_is_for_others_at_once(two: Two) -> None:
    call = await two.call()

    async def fail(go: Go) -> Done:
        raise RuntimeError("a bug of ours")

    with pytest.raises(RuntimeError):
        await two.one.execute(call, fail)
    two.finish.set()
    async with asyncio.timeout(2):
        assert await two.other.execute(call, two.work) == Ack()


async def test_a_call_that_goes_round_the_ladder_is_for_whoever_gets_it_next(two: Two) -> None:
    call = await two.call()

    async def postpone(go: Go) -> Postponed:
        return Postponed(5.0)

    later = await two.one.execute(call, postpone)
    assert isinstance(later, Later)
    assert later.placed is not None
    await later.placed()
    two.finish.set()
    async with asyncio.timeout(2):
        assert await two.other.execute(call, two.work) == Ack()


async def test_a_call_whose_executor_died_before_it_was_on_the_ladder_is_anyones(two: Two) -> None:
    """The broker was away: it has neither the old message nor the one that was to wait."""
    call = await two.call()

    async def postpone(go: Go) -> Postponed:
        return Postponed(5.0)

    async with two.dying.open():
        assert isinstance(await two.dying.execute(call, postpone), Later)
    two.finish.set()
    async with asyncio.timeout(2):
        again = msgspec.structs.replace(call, carrier="published again")
        assert await two.other.execute(again, two.work) == Ack()
    assert two.worked == 1
