"""What every transport promises of a post: nobody waits for it, and its sender hears its end."""

import asyncio

import msgspec
import pytest

from broker import topology
from broker.base import Broker, Outgoing
from broker.codec import MAX_BODY_BYTES
from broker.errors import BrokerClosed, QueueFull, TooLarge, Unroutable
from broker.memory import MemoryBroker
from broker.rabbitmq import RabbitBroker
from broker.topology import QueueSpec
from tests.conftest import Names
from tests.support.hand import Hand
from tests.support.queues import to, with_arguments
from tests.support.senders import Posting


async def test_what_is_posted_arrives_and_its_sender_hears_it_once(
    broker: Broker, trajectories: QueueSpec
) -> None:
    hand = Hand()
    senders = [Posting() for _ in range(1500)]  # more than a window
    for n, sender in enumerate(senders):
        broker.post(to(trajectories, b"%d" % n), sender)
    assert [await sender.end() for sender in senders] == [None] * len(senders)
    async with broker.consume(trajectories.name, 200, hand.take):
        came = await hand.next_bodies(len(senders))
        assert sorted(came) == sorted(b"%d" % n for n in range(len(senders)))
    assert all(sender.ends == [None] for sender in senders)


async def test_a_post_that_finds_no_queue_is_told_and_its_neighbours_are_taken(
    broker: Broker, tools: QueueSpec
) -> None:
    nobody, nowhere = Posting(), Posting()
    neighbours = [Posting() for _ in range(20)]
    for sender in neighbours[:10]:
        broker.post(to(tools), sender)
    broker.post(msgspec.structs.replace(to(tools), key="nobody"), nobody)
    broker.post(Outgoing("warren.x.nowhere", "key", b"x"), nowhere)
    for sender in neighbours[10:]:
        broker.post(to(tools), sender)
    assert isinstance(await nobody.end(), Unroutable)
    assert isinstance(await nowhere.end(), Unroutable)
    assert [await sender.end() for sender in neighbours] == [None] * 20
    assert all(len(sender.ends) == 1 for sender in (nobody, nowhere, *neighbours))


async def test_a_queue_that_was_taken_away_is_declared_again_by_the_publish_after_the_post(
    broker: Broker, tools: QueueSpec, make_broker: object
) -> None:
    assert callable(make_broker)
    other = await make_broker()
    await other.delete(tools.name)
    sender = Posting()
    broker.post(to(tools), sender)
    assert isinstance(await sender.end(), Unroutable)
    await broker.publish(to(tools, b"again"))
    hand = Hand()
    async with broker.consume(tools.name, 1, hand.take):
        assert await hand.next_bodies(1) == [b"again"]


async def test_a_full_queue_is_told_of_every_post_that_it_refuses(
    broker: Broker, fresh_names: Names
) -> None:
    queue = with_arguments(topology.tool_queue(fresh_names.environment), max_length=3)
    await broker.declare([queue])
    taken = []
    for n in range(50):  # RabbitMQ takes a few more than that
        sender = Posting()
        broker.post(to(queue, b"%d" % n), sender)
        error = await sender.end()
        assert error is None or isinstance(error, QueueFull)
        if error is None:
            taken.append(b"%d" % n)
    assert len(taken) < 50
    hand = Hand()
    async with broker.consume(queue.name, 50, hand.take):
        assert await hand.next_bodies(len(taken)) == taken
        assert await hand.stays_empty()


async def test_a_post_that_is_too_large_is_told(broker: Broker, tools: QueueSpec) -> None:
    sender = Posting()
    broker.post(to(tools, bytes(MAX_BODY_BYTES + 1)), sender)
    assert isinstance(await sender.end(), TooLarge)


async def test_a_post_on_a_closed_broker_is_told(broker: Broker, tools: QueueSpec) -> None:
    await broker.close()
    sender = Posting()
    broker.post(to(tools), sender)
    assert isinstance(await sender.end(), BrokerClosed)


async def test_what_is_posted_while_the_connection_breaks_arrives_and_is_told_once(
    broker: MemoryBroker | RabbitBroker, trajectories: QueueSpec
) -> None:
    senders = [Posting() for _ in range(200)]
    for n, sender in enumerate(senders):
        broker.post(to(trajectories, b"%d" % n), sender)
        if n % 80 == 40:
            await asyncio.sleep(0)  # so that some are on their way
            broker.break_connection()
    assert [await sender.end() for sender in senders] == [None] * 200
    hand, came = Hand(), set[bytes]()
    async with broker.consume(trajectories.name, 300, hand.take):
        while len(came) < 200:  # a message may come twice
            came |= set(await hand.next_bodies(1))
    assert all(sender.ends == [None] for sender in senders)


@pytest.mark.parametrize("wanted", [True, False])
async def test_a_sender_hears_the_end_of_what_was_sent_wanted_or_not(
    broker: Broker, tools: QueueSpec, wanted: bool
) -> None:
    sender = Posting()
    broker.post(to(tools), sender)
    sender.wanted = wanted
    assert await sender.end() is None
