"""What every transport promises a consumer: what is in hand, settled, given back, come again."""

import asyncio
from typing import Any

from broker.base import Broker
from broker.memory import MemoryBroker
from broker.rabbitmq import RabbitBroker
from broker.topology import QueueSpec
from tests.support.hand import Hand
from tests.support.queues import MakeBroker, to


async def test_prefetch_bounds_what_is_in_hand(broker: Broker, trajectories: QueueSpec) -> None:
    hand = Hand()
    for i in range(5):
        await broker.publish(to(trajectories, b"%d" % i))
    async with broker.consume(trajectories.name, 2, hand.take):
        first, second = await hand.next(), await hand.next()
        assert await hand.stays_empty()
        second.ack()
        third = await hand.next()
        assert await hand.stays_empty()
        assert [d.body for d in (first, second, third)] == [b"0", b"1", b"2"]


async def test_a_large_prefetch_bounds_what_is_in_hand_too(
    broker: Broker, trajectories: QueueSpec
) -> None:
    hand, sent = Hand(), {b"%d" % i for i in range(203)}
    for body in sent:
        await broker.publish(to(trajectories, body))
    async with broker.consume(trajectories.name, 200, hand.take):
        held = [await hand.next() for _ in range(200)]
        assert await hand.stays_empty()
        for delivery in held[100:102]:
            delivery.ack()
        held += [await hand.next() for _ in range(2)]
        assert await hand.stays_empty()
        held[0].ack()
        held.append(await hand.next())
        assert {delivery.body for delivery in held} == sent


async def test_what_is_acked_never_comes_again(
    make_broker: MakeBroker, trajectories: QueueSpec, broker: Broker
) -> None:
    hand = Hand()
    for i in range(4):
        await broker.publish(to(trajectories, b"%d" % i))
    consumer = await make_broker()
    async with consumer.consume(trajectories.name, 10, hand.take):
        held = [await hand.next() for _ in range(4)]
        for delivery in (held[1], held[0], held[3]):
            delivery.ack()
            assert not delivery.live
    await consumer.close()
    async with broker.consume(trajectories.name, 10, hand.take):
        assert await hand.next_bodies(1) == [b"2"]
        assert await hand.stays_empty()


async def test_without_a_prefetch_all_comes_at_once_and_never_again(
    make_broker: MakeBroker, tools: QueueSpec, broker: Broker
) -> None:
    hand = Hand()
    await broker.publish(to(tools, b"0"))
    consumer = await make_broker()
    async with consumer.consume(tools.name, None, hand.take):
        for i in range(1, 4):
            await broker.publish(to(tools, b"%d" % i))
        held = [await hand.next() for _ in range(4)]
        assert [delivery.body for delivery in held] == [b"0", b"1", b"2", b"3"]
        assert not any(delivery.live for delivery in held)
        held[0].ack()
        held[1].give_back()
        assert await hand.stays_empty()
    await consumer.close()
    async with broker.consume(tools.name, 10, hand.take):
        assert await hand.stays_empty()


async def test_what_is_given_back_comes_again_at_once_in_front(
    broker: Broker, tools: QueueSpec
) -> None:
    hand = Hand()
    for body in (b"1", b"2", b"3"):
        await broker.publish(to(tools, body))
    async with broker.consume(tools.name, 1, hand.take):
        (await hand.next()).give_back()
        again = await hand.next()
        assert (again.body, again.redelivered) == (b"1", True)
        again.ack()
        assert await hand.next_bodies(2) == [b"2", b"3"]


async def test_settling_twice_does_nothing(broker: Broker, tools: QueueSpec) -> None:
    hand = Hand()
    async with broker.consume(tools.name, 1, hand.take):
        await broker.publish(to(tools, b"1"))
        delivery = await hand.next()
        delivery.ack()
        delivery.ack()
        delivery.give_back()
        await broker.publish(to(tools, b"2"))
        assert await hand.next_bodies(1) == [b"2"]


async def test_a_dead_consumer_gives_back_what_it_held(
    make_broker: MakeBroker, broker: Broker, trajectories: QueueSpec
) -> None:
    mine, theirs = Hand(), Hand()
    dying = await make_broker()
    for body in (b"1", b"2"):
        await broker.publish(to(trajectories, body))
    async with dying.consume(trajectories.name, 2, mine.take):
        held = [await mine.next(), await mine.next()]
        async with broker.consume(trajectories.name, 2, theirs.take):
            await dying.close()
            again = [await theirs.next(), await theirs.next()]
            assert {d.body for d in again} == {b"1", b"2"}
            assert all(d.redelivered for d in again)
            assert not any(d.live for d in held)
            held[0].ack()
            for delivery in again:
                delivery.ack()


async def test_a_broken_connection_comes_back_with_its_consumers(
    broker: MemoryBroker | RabbitBroker, trajectories: QueueSpec
) -> None:
    hand = Hand()
    async with broker.consume(trajectories.name, 1, hand.take):
        await broker.publish(to(trajectories, b"before"))
        held = await hand.next()
        broker.break_connection()
        again = await hand.next()
        assert (again.body, again.redelivered) == (b"before", True)
        assert not held.live
        held.ack()
        assert again.live
        again.ack()
        await broker.publish(to(trajectories, b"after"))
        assert await hand.next_bodies(1) == [b"after"]
        assert broker.reconnects > 0
        assert broker.connected


async def test_leaving_the_context_stops_deliveries_and_keeps_what_is_in_hand(
    make_broker: MakeBroker, broker: Broker, trajectories: QueueSpec
) -> None:
    hand = Hand()
    async with broker.consume(trajectories.name, 2, hand.take):
        await broker.publish(to(trajectories, b"1"))
        await broker.publish(to(trajectories, b"2"))
        first, second = await hand.next(), await hand.next()
    await broker.publish(to(trajectories, b"3"))
    assert await hand.stays_empty()
    assert first.live
    first.ack()
    second.give_back()
    other = await make_broker()
    async with other.consume(trajectories.name, 5, hand.take):
        assert set(await hand.next_bodies(2)) == {b"2", b"3"}
        assert await hand.stays_empty()


async def test_two_consumers_share_a_queue(
    make_broker: MakeBroker, broker: Broker, tools: QueueSpec
) -> None:
    mine, theirs = Hand(), Hand()
    other = await make_broker()
    async with (
        broker.consume(tools.name, 1, mine.take),
        other.consume(tools.name, 1, theirs.take),
    ):
        for i in range(2):
            await broker.publish(to(tools, b"%d" % i))
        assert {(await mine.next()).body, (await theirs.next()).body} == {b"0", b"1"}


async def test_a_callback_that_raises_stops_nobody_else(broker: Broker, tools: QueueSpec) -> None:
    hand, reported = Hand(), asyncio.Event()
    asyncio.get_running_loop().set_exception_handler(lambda *_: reported.set())

    def take(delivery: Any) -> None:
        if delivery.body == b"bad":
            raise RuntimeError("a bug")
        hand.take(delivery)

    async with broker.consume(tools.name, 5, take):
        await broker.publish(to(tools, b"bad"))
        await broker.publish(to(tools, b"good"))
        assert await hand.next_bodies(1) == [b"good"]
        assert reported.is_set()
