"""What every transport promises of its queues: full, followed, declared, deleted, counted."""

import asyncio
from dataclasses import replace

import pytest

from broker import topology
from broker.base import Broker, Outgoing, QueueDepth
from broker.errors import BrokerError, QueueFull, Unroutable
from broker.topology import QueueSpec
from tests.conftest import Names
from tests.support.hand import Hand, until
from tests.support.queues import MakeBroker, to, with_arguments


async def test_a_full_queue_refuses_and_takes_again_when_there_is_room(
    broker: Broker, fresh_names: Names
) -> None:
    queue = with_arguments(topology.tool_queue(fresh_names.environment), max_length=3)
    await broker.declare([queue])
    accepted = await _publish_until_full(broker, queue)
    hand = Hand()
    async with broker.consume(queue.name, 50, hand.take):
        assert await hand.next_bodies(accepted) == [b"%d" % i for i in range(accepted)]
        await broker.publish(to(queue, b"again"))
        assert await hand.next_bodies(1) == [b"again"]


async def _publish_until_full(broker: Broker, queue: QueueSpec) -> int:
    for accepted in range(50):
        try:
            await broker.publish(to(queue, b"%d" % accepted))
        except QueueFull:
            return accepted
    raise AssertionError("a queue of length 3 took 50")


async def test_a_full_inbox_drops_its_oldest(broker: Broker, fresh_names: Names) -> None:
    inbox = with_arguments(topology.inbox(fresh_names.new("agent")), max_length=2)
    await broker.declare([inbox])
    for i in range(4):
        await broker.publish(to(inbox, b"%d" % i))
    hand = Hand()
    async with broker.consume(inbox.name, 5, hand.take):
        assert await hand.next_bodies(2) == [b"2", b"3"]


async def test_a_single_active_consumer_is_followed_by_the_next(
    make_broker: MakeBroker, broker: Broker, fresh_names: Names
) -> None:
    queue = topology.run_results_queue("grpo", fresh_names.run)
    queue = with_arguments(queue, single_active_consumer=True)
    queue = replace(queue, name=fresh_names.new("sac"))
    await broker.declare([queue])
    message = Outgoing(topology.RESULT.name, topology.result_key("grpo", fresh_names.run, 0), b"x")
    first, second = Hand(), Hand()
    other = await make_broker()
    async with (
        other.consume(queue.name, 1, first.take),
        broker.consume(queue.name, 1, second.take),
    ):
        await broker.publish(message)
        await broker.publish(message)
        assert (await first.next()).live
        assert await second.stays_empty()
        await other.close()
        (await second.next()).ack()
        (await second.next()).ack()


async def test_a_deleted_queue_is_gone_with_what_is_in_it(broker: Broker, tools: QueueSpec) -> None:
    await broker.publish(to(tools))
    await broker.delete(tools.name)
    await broker.delete(tools.name)
    assert await broker.depth(tools.name) is None
    with pytest.raises(Unroutable):
        await broker.publish(to(tools))


async def test_who_declared_a_queue_that_another_has_deleted_declares_it_again_and_publishes(
    broker: Broker, make_broker: MakeBroker, trajectories: QueueSpec
) -> None:
    await (await make_broker()).delete(trajectories.name)
    hand = Hand()
    async with asyncio.TaskGroup() as group:  # all at once: each goes its way, once
        for n in range(5):
            group.create_task(broker.publish(to(trajectories, b"%d" % n)))
    async with broker.consume(trajectories.name, 9, hand.take):
        assert set(await hand.next_bodies(5)) == {b"%d" % n for n in range(5)}
        assert await hand.stays_empty()


async def test_a_consumer_of_a_queue_that_was_deleted_and_made_again_goes_on(
    make_broker: MakeBroker, broker: Broker, trajectories: QueueSpec
) -> None:
    operator = await make_broker()
    hand = Hand()
    async with broker.consume(trajectories.name, 1, hand.take):
        await operator.delete(trajectories.name)
        # RabbitMQ 3.10 keeps a phantom of the consumer on a quorum queue that is made again within
        # a millisecond, and tells nobody: no client can know. Nobody operates that fast.
        await asyncio.sleep(0.1)
        await operator.declare([trajectories])
        await operator.publish(to(trajectories, b"again"))
        async with asyncio.timeout(10):
            assert await hand.next_bodies(1) == [b"again"]


async def test_depth_counts_what_is_ready_and_who_consumes(
    broker: Broker, trajectories: QueueSpec
) -> None:
    name = trajectories.name
    assert await broker.depth("warren.q.nowhere") is None
    for _ in range(3):
        await broker.publish(to(trajectories))
    await until(lambda: _stands(broker, name, QueueDepth(3, 0)))
    hand = Hand()
    async with broker.consume(name, 1, hand.take):
        await hand.next()
        await until(lambda: _stands(broker, name, QueueDepth(2, 1)))


async def _stands(broker: Broker, queue: str, depth: QueueDepth) -> bool:
    return await broker.depth(queue) == depth


async def test_declaring_again_changes_nothing(broker: Broker, tools: QueueSpec) -> None:
    await broker.publish(to(tools, b"kept"))
    await broker.declare([tools, tools])
    hand = Hand()
    async with broker.consume(tools.name, 5, hand.take):
        assert await hand.next_bodies(1) == [b"kept"]
        assert await hand.stays_empty()


async def test_declaring_otherwise_names_the_queue_and_the_argument(
    broker: Broker, tools: QueueSpec
) -> None:
    with pytest.raises(BrokerError, match="x-max-length") as raised:
        await broker.declare([with_arguments(tools, max_length=7)])
    assert tools.name in str(raised.value)
    await broker.publish(to(tools))


async def test_consuming_what_does_not_exist_raises(broker: Broker) -> None:
    with pytest.raises(BrokerError, match=r"warren\.q\.nowhere"):
        async with broker.consume("warren.q.nowhere", 1, Hand().take):
            raise AssertionError("there is nothing to consume")
