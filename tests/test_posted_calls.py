"""Calls whose confirm nobody waits for: refused, late, lost, and never heard of again."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from broker.base import Sender
from broker.errors import BrokerLost, QueueFull, TooLarge, Unroutable, WarrenError
from broker.journal.memory import MemoryJournal
from broker.memory import MemoryBroker
from broker.messages import Reply
from broker.metered import MeteredBroker
from broker.metrics import Metrics
from broker.topology import tool_queue
from tests.support.calls import asked
from tests.support.hand import PATIENCE_S, Hand, until
from tests.support.journals import taken
from tests.support.queues import with_arguments
from tests.support.senders import Silent
from tests.support.virtual_time import VirtualTimeLoop
from workers.inbox import Inbox
from workers.owner import Owner
from workers.waiting import Ask

KEY = "r.g/0/0"
QUEUE = tool_queue("env")
LONG_S = 300.0


class World:
    """An owner whose calls the test confirms, refuses and answers."""

    def __init__(self, broker: MemoryBroker) -> None:
        self.broker = broker
        self.metrics = Metrics("agent", "0")
        self.journal = MemoryJournal()
        self.owner: Owner

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[None, None]:
        """The rollout is in our hands."""
        inbox = Inbox(MeteredBroker(self.broker, self.metrics), self.journal, "owner")
        async with inbox.open():
            run = await taken(self.journal, KEY, "owner")
            with inbox.own(KEY, run) as self.owner:
                yield

    def call(self, ask: Ask | None = None) -> "asyncio.Task[bytes]":
        return asyncio.create_task(self.owner.call(ask or asked()))

    def answer(self, result: bytes) -> None:
        """The call's reply comes."""
        self.owner.hear(self.reply("result", result))

    def reply(self, kind: str, result: bytes = b"") -> Reply:
        epoch = self.owner.run.epoch
        return Reply(rollout=KEY, epoch=epoch, path="0", kind=kind, result=result)  # type: ignore[arg-type]

    def counted(self, outcome: str) -> float | None:
        labels = {"exchange": "tool", "outcome": outcome}
        return self.metrics.registry.get_sample_value("warren_amqp_published_total", labels)


@asynccontextmanager
async def silent() -> AsyncGenerator[tuple[World, Silent], None]:
    """A world whose broker says nothing until it is asked to."""
    broker = Silent()
    await broker.declare([QUEUE])
    world = World(broker)
    async with asyncio.timeout(PATIENCE_S), world.open():
        yield world, broker


def _returns(condition: Callable[[], bool]) -> Callable[[], Awaitable[bool]]:
    async def ask() -> bool:
        return condition()

    return ask


async def queued(broker: MemoryBroker) -> int:
    depth = await broker.depth(QUEUE.name)
    assert depth is not None
    return depth.ready


async def test_a_reply_that_comes_before_the_confirm_is_the_answer_and_nothing_is_sent_again() -> (
    None
):
    async with silent() as (world, broker):
        call = world.call()
        await broker.came.wait()
        world.answer(b"42")
        assert await call == b"42"
        assert not world.owner.waits
        assert not broker.posted[0][1].wanted
        broker.take()  # the confirm comes now
        assert world.counted("confirmed") == 1


@pytest.mark.parametrize("end", [None, QueueFull("full"), BrokerLost("gone")])
async def test_a_call_that_is_cancelled_before_the_confirm_leaves_nothing_behind(
    end: WarrenError | None,
) -> None:
    async with silent() as (world, broker):
        call = world.call()
        await broker.came.wait()
        call.cancel()
        await asyncio.wait([call])
        assert not world.owner.waits
        sender: Sender = broker.take() if end is None else broker.refuse(end)
        assert not sender.wanted
        await asyncio.sleep(0)
        assert call.cancelled()
        assert not broker.posted


async def test_a_call_that_is_not_confirmed_by_its_deadline_is_given_up_and_not_sent_any_more() -> (
    None
):
    async with silent() as (world, broker):
        assert await world.call(asked(timeout_s=0.01)) == b"timed out"
        assert not broker.posted[0][1].wanted


async def test_a_full_queue_is_waited_for_as_long_as_it_is_full() -> None:
    queue = with_arguments(QUEUE, max_length=1)
    broker = MemoryBroker()
    await broker.declare([queue])
    world, hand = World(broker), Hand()
    async with asyncio.timeout(PATIENCE_S), world.open():
        first, second = world.call(), world.call(asked(path="1"))
        await until(_returns(lambda: world.counted("full") == 3))  # it goes on asking
        assert await queued(broker) == 1
        assert not second.done()
        async with broker.consume(queue.name, 10, hand.take):
            await hand.next_bodies(2)
        first.cancel()
        second.cancel()
        await asyncio.wait([first, second])


async def test_a_queue_that_is_taken_away_is_declared_again_for_the_call() -> None:
    broker = MemoryBroker()
    ask = asked(queue=QUEUE)  # as models that code names
    world = World(broker)
    async with asyncio.timeout(PATIENCE_S), world.open():
        first = world.call(ask)
        await asyncio.sleep(0)
        await broker.connect().delete(QUEUE.name)
        second = world.call(asked(path="1", queue=QUEUE))
        await until(_returns(lambda: world.counted("confirmed") == 2))
        assert world.counted("unroutable") == await queued(broker) == 1
        for call in (first, second):
            call.cancel()
        await asyncio.wait([first, second])


async def test_a_call_for_which_there_is_no_queue_is_an_error_at_once() -> None:
    world = World(MemoryBroker())
    async with asyncio.timeout(PATIENCE_S), world.open():
        with pytest.raises(Unroutable):
            await world.owner.call(asked())
        assert not world.owner.waits


@pytest.mark.parametrize("error", [BrokerLost("away"), TooLarge("16 MiB")])
async def test_what_no_second_try_can_help_is_the_callers_error(error: WarrenError) -> None:
    async with silent() as (world, broker):
        call = world.call()
        await broker.came.wait()
        broker.refuse(error)
        with pytest.raises(type(error)):
            await call


async def test_a_refusal_is_not_lost_beside_a_reply_of_the_same_moment() -> None:
    async with silent() as (world, broker):
        call = world.call()
        await broker.came.wait()
        world.owner.hear(world.reply("journal_lost"))
        broker.refuse(BrokerLost("away"))
        with pytest.raises(BrokerLost):
            await call


def test_what_is_not_confirmed_is_left_to_the_broker_and_looked_for_once_it_was_confirmed() -> None:
    async def scenario() -> None:
        broker = Silent()
        await broker.declare([QUEUE])
        world = World(broker)
        async with world.open():
            call = world.call()
            await broker.came.wait()
            broker.break_connection()
            await asyncio.sleep(LONG_S)
            assert len(broker.posted) == 1  # it is sent on the new connection, not once more
            broker.take()
            await asyncio.sleep(LONG_S)
            assert not broker.posted
            broker.break_connection()
            await asyncio.sleep(LONG_S)
            assert len(broker.posted) == 1
            broker.take()
            call.cancel()
            await asyncio.wait([call])

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(scenario())


def test_what_is_not_confirmed_when_its_journal_is_lost_is_not_published_twice() -> None:
    async def scenario() -> None:
        broker = Silent()
        await broker.declare([QUEUE])
        world = World(broker)
        async with world.open():
            call = world.call()
            await broker.came.wait()
            world.journal.table.restore(type(world.journal.table)())
            await asyncio.sleep(LONG_S)
            assert len(broker.posted) == 1
            call.cancel()
            await asyncio.wait([call])

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(scenario())
