"""What every transport promises of a publish: it is kept or it raises, whole, each for itself."""

import asyncio

import msgspec
import pytest

from broker import topology
from broker.base import Broker, Outgoing
from broker.codec import MAX_BODY_BYTES
from broker.errors import BrokerClosed, TooLarge, Unroutable
from broker.topology import QueueSpec
from tests.conftest import Names
from tests.support.hand import Hand
from tests.support.queues import to


async def test_a_published_message_arrives_as_it_was_sent(
    broker: Broker, trajectories: QueueSpec
) -> None:
    hand = Hand()
    headers = {"warren-failures": 2, "warren-reason": "é"}
    await broker.publish(to(trajectories, b"\x00body", kind="trajectory.v1", headers=headers))
    async with broker.consume(trajectories.name, 1, hand.take):
        delivery = await hand.next()
    binding = trajectories.bindings[0]
    assert delivery.body == b"\x00body"
    assert delivery.kind == "trajectory.v1"
    assert {k: delivery.headers[k] for k in headers} == headers
    assert (delivery.exchange, delivery.key) == (binding.exchange.name, binding.key)
    assert delivery.queue == trajectories.name
    assert not delivery.redelivered
    assert delivery.live


async def test_an_empty_body_is_a_message_too(broker: Broker, tools: QueueSpec) -> None:
    hand = Hand()
    async with broker.consume(tools.name, 1, hand.take):
        await broker.publish(to(tools, b""))
        assert (await hand.next()).body == b""


async def test_an_unroutable_publish_raises(broker: Broker, tools: QueueSpec) -> None:
    with pytest.raises(Unroutable):
        await broker.publish(msgspec.structs.replace(to(tools), key="nobody"))
    await broker.publish(to(tools))


async def test_a_publish_to_an_exchange_that_does_not_exist_is_unroutable(
    broker: Broker, tools: QueueSpec
) -> None:
    async with asyncio.TaskGroup() as group:
        neighbours = [group.create_task(broker.publish(to(tools))) for _ in range(20)]
        with pytest.raises(Unroutable):
            await broker.publish(Outgoing("warren.x.nowhere", "key", b"x"))
    assert all(task.done() for task in neighbours)


async def test_a_message_that_is_too_large_is_refused_here(
    broker: Broker, tools: QueueSpec
) -> None:
    with pytest.raises(TooLarge):
        await broker.publish(to(tools, bytes(MAX_BODY_BYTES + 1)))


async def test_a_message_of_8_mib_arrives_whole(broker: Broker, trajectories: QueueSpec) -> None:
    hand = Hand()
    body = bytes(range(256)) * (8 * 4096)
    async with broker.consume(trajectories.name, 1, hand.take):
        await broker.publish(to(trajectories, body))
        delivery = await hand.next()
        assert delivery.body == body
        delivery.ack()


async def test_a_hint_arrives_and_may_also_find_nobody(broker: Broker, fresh_names: Names) -> None:
    inbox = topology.inbox(fresh_names.new("agent"))
    await broker.declare([inbox])
    hand = Hand()
    broker.publish_hint(msgspec.structs.replace(to(inbox), key="nobody"))
    broker.publish_hint(Outgoing("warren.x.nowhere", "key", b"x"))
    async with broker.consume(inbox.name, 1, hand.take):
        async with asyncio.timeout(10):
            while await hand.stays_empty():  # a hint may be lost, so it is said again
                broker.publish_hint(to(inbox, b"hint", persistent=False))


async def test_many_publishes_at_once_all_arrive_once(
    broker: Broker, trajectories: QueueSpec
) -> None:
    hand = Hand()
    bodies = {b"%d" % i for i in range(1500)}
    async with broker.consume(trajectories.name, 200, hand.take):
        async with asyncio.TaskGroup() as group:
            for body in bodies:
                group.create_task(broker.publish(to(trajectories, body)))
        came = await hand.next_bodies(len(bodies))
        assert len(came) == len(bodies)
        assert set(came) == bodies


async def test_a_closed_broker_says_so(broker: Broker, tools: QueueSpec) -> None:
    await broker.close()
    await broker.close()
    assert not broker.connected
    with pytest.raises(BrokerClosed):
        await broker.publish(to(tools))
    with pytest.raises(BrokerClosed):
        await broker.depth(tools.name)
    broker.publish_hint(to(tools))


async def test_a_cancelled_publish_harms_no_other(broker: Broker, trajectories: QueueSpec) -> None:
    hand = Hand()
    tasks = [asyncio.ensure_future(broker.publish(to(trajectories, b"%d" % i))) for i in range(200)]
    await asyncio.sleep(0)
    for task in tasks[::3]:
        task.cancel()
    await asyncio.wait(tasks)
    sure = {b"%d" % i for i, task in enumerate(tasks) if not task.cancelled()}
    came: set[bytes] = set()
    async with broker.consume(trajectories.name, 300, hand.take):
        while not sure <= came:
            came |= set(await hand.next_bodies(1))
