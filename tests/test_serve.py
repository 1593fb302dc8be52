"""The core loop: what is done is settled once, what is not goes back by itself, at once."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from broker.base import Delivery, Outgoing, QueueDepth
from broker.errors import BrokerLost, JournalUnavailable, Undecodable
from broker.memory import MemoryBroker
from broker.serve import (
    FAILURES_HEADER,
    QUEUE_HEADER,
    REASON_HEADER,
    Ack,
    Dead,
    Handler,
    Later,
    Outcome,
    Source,
    serve,
)
from broker.topology import TOOL, dead_queue, ladder_queues, tool_queue
from tests.support.hand import Hand
from tests.support.virtual_time import VirtualTimeLoop

QUEUE = tool_queue("env")
CALL = Outgoing(exchange=TOOL.name, key="env", body=b"call", kind="toolcall.v1")


@asynccontextmanager
async def serving(broker: MemoryBroker, handle: Handler, prefetch: int = 1) -> AsyncIterator[None]:
    """A worker with this handler, and the call published once."""
    await broker.declare([QUEUE, dead_queue(), *ladder_queues("tool")])
    stop = asyncio.Event()
    source = Source(QUEUE, prefetch, handle, "tool")
    worker = asyncio.create_task(serve(broker, [source], stop=stop, grace_s=0.01))
    await broker.publish(CALL)
    yield
    stop.set()
    await worker


class Handled:
    """A handler that gives these outcomes, one after the other, or raises them."""

    def __init__(self, *outcomes: Outcome | Exception) -> None:
        self.seen: list[Delivery] = []
        self.all_seen = asyncio.Event()
        self._outcomes = list(outcomes)

    async def handle(self, delivery: Delivery) -> Outcome:
        self.seen.append(delivery)
        outcome = self._outcomes[len(self.seen) - 1]
        if len(self.seen) == len(self._outcomes):
            self.all_seen.set()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


@pytest.mark.parametrize(
    ("outcome", "elsewhere"),
    [
        (Ack(), None),
        (Dead("no use"), dead_queue().name),
        (Undecodable("not ours"), dead_queue().name),
        (Later(5.0), ladder_queues("tool")[0].name),
        (ValueError("a bug"), ladder_queues("tool")[0].name),
    ],
)
async def test_what_is_handled_is_settled_and_never_comes_again(
    outcome: Outcome | Exception, elsewhere: str | None
) -> None:
    broker, other = (node := MemoryBroker()), node.connect()
    handled = Handled(outcome)
    async with serving(broker, handled.handle):
        await handled.all_seen.wait()
    assert not handled.seen[0].live, "it is still in hand"
    await broker.close()  # gives back what is in hand
    depths = {q.name: await other.depth(q.name) for q in (dead_queue(), *ladder_queues("tool"))}
    assert {name for name, depth in depths.items() if depth and depth.ready} == (
        {elsewhere} if elsewhere else set()
    )
    hand = Hand()
    async with other.consume(QUEUE.name, 1, hand.take):
        assert await hand.stays_empty()


async def test_what_waits_on_a_ladder_is_there_before_anybody_is_told_so() -> None:
    broker, ladder = MemoryBroker(), ladder_queues("tool")[0].name
    ready: list[int] = []

    async def placed() -> None:
        depth = await broker.depth(ladder)
        assert depth is not None
        ready.append(depth.ready)

    handled = Handled(Later(5.0, placed=placed))
    async with serving(broker, handled.handle):
        await handled.all_seen.wait()
    assert ready == [1]


async def test_prefetch_is_free_again_once_a_delivery_is_done() -> None:
    broker = MemoryBroker()
    handled = Handled(Ack(), Ack(), Ack())
    async with serving(broker, handled.handle, prefetch=1):
        for _ in range(2):
            await broker.publish(CALL)
        async with asyncio.timeout(5.0):
            await handled.all_seen.wait()


def test_an_error_that_nobody_expected_is_tried_three_times_then_dead_lettered() -> None:
    async def scenario() -> None:
        broker, hand = MemoryBroker(), Hand()
        handled = Handled(*[ValueError("a bug")] * 3)
        clock = asyncio.get_running_loop().time
        async with serving(broker, handled.handle):
            began = clock()
            async with broker.consume(dead_queue().name, 1, hand.take):
                letter = await hand.next()
            assert clock() - began == pytest.approx(10.0, abs=1.0)
        assert [d.headers.get(FAILURES_HEADER, 0) for d in handled.seen] == [0, 1, 2]
        assert letter.headers[REASON_HEADER] == "ValueError: a bug (3 times)"
        assert (letter.headers[QUEUE_HEADER], letter.body) == (QUEUE.name, CALL.body)

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(scenario())


def test_while_the_journal_is_away_a_message_goes_back_and_is_never_called_dead() -> None:
    async def scenario() -> None:
        broker = MemoryBroker()
        handled = Handled(*[JournalUnavailable("gone")] * 20, Ack())
        async with serving(broker, handled.handle):
            async with asyncio.timeout(60.0):
                await handled.all_seen.wait()
        for queue in (QUEUE, dead_queue()):
            assert await broker.depth(queue.name) == QueueDepth(ready=0, consumers=0)

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(scenario())


async def test_serving_that_is_stopped_before_it_begins_ends_at_once() -> None:
    stop = asyncio.Event()
    stop.set()
    async with asyncio.timeout(5.0):
        await serve(MemoryBroker(), [], stop=stop)


async def test_a_broker_that_is_gone_ends_the_serving_and_gives_back_all_that_is_in_hand() -> None:
    broker = MemoryBroker()
    begun, ended = asyncio.Event(), asyncio.Event()

    async def handle(delivery: Delivery) -> Outcome:
        if begun.is_set():
            raise BrokerLost("gone")
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        raise AssertionError

    await broker.declare([QUEUE])
    await broker.publish(CALL)
    await broker.publish(CALL)
    with pytest.raises(ExceptionGroup) as raised:
        async with asyncio.timeout(5.0):
            await serve(broker, [Source(QUEUE, 2, handle, "tool")], stop=asyncio.Event())
    assert isinstance(raised.value.exceptions[0], BrokerLost)
    assert ended.is_set()
    assert await broker.depth(QUEUE.name) == QueueDepth(ready=2, consumers=0)


async def test_what_is_not_done_at_the_end_of_the_grace_is_given_back_at_once() -> None:
    broker, other = (node := MemoryBroker()), node.connect()
    begun, hand = asyncio.Event(), Hand()

    async def never_ends(delivery: Delivery) -> Outcome:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    async with serving(broker, never_ends):
        await begun.wait()
    async with other.consume(QUEUE.name, 1, hand.take):  # the first connection is still open
        assert (await hand.next()).redelivered


async def test_nothing_is_left_running_however_often_serving_is_cancelled_while_it_ends() -> None:
    broker = MemoryBroker()
    began, ending, may_end, ended = (asyncio.Event() for _ in range(4))

    async def handle(_: Delivery) -> Outcome:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ending.set()
            await may_end.wait()
            ended.set()
        return Ack()

    await broker.declare([QUEUE])
    stop = asyncio.Event()
    source = Source(QUEUE, 1, handle, "tool")
    worker = asyncio.create_task(serve(broker, [source], stop=stop, grace_s=0.0))
    await broker.publish(CALL)
    await began.wait()
    stop.set()
    await ending.wait()
    for _ in range(3):
        worker.cancel()
        await asyncio.wait([worker], timeout=0.01)
    assert not worker.done()
    may_end.set()
    await asyncio.wait([worker])
    assert worker.cancelled()
    assert ended.is_set()
