"""The promises of broker/base.py, on every transport."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from broker import topology
from broker.base import Broker, Outgoing, QueueDepth
from broker.codec import MAX_BODY_BYTES
from broker.errors import BrokerClosed, BrokerError, QueueFull, TooLarge, Unroutable
from broker.memory import MemoryBroker
from broker.rabbitmq import RabbitBroker
from broker.topology import Argument, Binding, ExchangeSpec, QueueSpec
from tests.conftest import Names
from tests.support.hand import Hand, until

MakeBroker = Callable[[], Awaitable[MemoryBroker | RabbitBroker]]


@pytest.fixture
async def broker(make_broker: MakeBroker) -> MemoryBroker | RabbitBroker:
    return await make_broker()


@pytest.fixture
async def tools(broker: Broker, fresh_names: Names) -> QueueSpec:
    """A classic work queue of this test's own."""
    queue = topology.tool_queue(fresh_names.environment)
    await broker.declare([queue])
    return queue


@pytest.fixture
async def trajectories(broker: Broker, fresh_names: Names) -> QueueSpec:
    """A quorum work queue of this test's own."""
    queue = topology.verify_queue(fresh_names.environment)
    await broker.declare([queue])
    return queue


def to(queue: QueueSpec, body: bytes = b"x", **more: Any) -> Outgoing:
    binding = queue.bindings[0]
    return Outgoing(binding.exchange.name, binding.key, body, **more)


def with_arguments(queue: QueueSpec, **arguments: Argument) -> QueueSpec:
    named = {"x-" + name.replace("_", "-"): value for name, value in arguments.items()}
    return replace(queue, arguments={**queue.arguments, **named})


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


async def test_a_waiting_room_returns_messages_under_their_own_key(
    broker: Broker, tools: QueueSpec, fresh_names: Names
) -> None:
    hand = Hand()
    room = with_arguments(topology.ladder_queues("tool")[0], message_ttl=200)
    exchange = ExchangeSpec(f"warren.x.{fresh_names.new('retry')}", "fanout")
    room = replace(room, name=fresh_names.new("retry"), bindings=(Binding(exchange),))
    await broker.declare([room])
    async with broker.consume(tools.name, 1, hand.take):
        key = tools.bindings[0].key
        headers = {"warren-failures": 1}
        await broker.publish(Outgoing(exchange.name, key, b"later", "toolcall.v1", headers))
        delivery = await hand.next()
        assert (delivery.body, delivery.key, delivery.kind) == (b"later", key, "toolcall.v1")
        assert delivery.headers["warren-failures"] == 1
        delivery.ack()


async def test_a_held_copy_goes_on_in_the_resume_lane_only_when_nobody_holds_it(
    make_broker: MakeBroker, broker: Broker, fresh_names: Names
) -> None:
    ttl_s = 0.6
    resume = topology.task_queue("resume", fresh_names.environment)
    held = topology.held_queue(fresh_names.new("agent"), fresh_names.environment)
    held = with_arguments(held, message_ttl=int(ttl_s * 1000))
    owner = await make_broker()
    await broker.declare([resume, held])
    mine, theirs = Hand(), Hand()
    async with broker.consume(resume.name, 1, theirs.take):
        async with owner.consume(held.name, 10, mine.take):
            await owner.publish(to(held, b"task"))
            copy = await mine.next()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(2 * ttl_s):
                    await theirs.next()
            assert copy.live
            await owner.close()
        moved = await theirs.next()
        assert (moved.body, moved.key) == (b"task", resume.bindings[0].key)
        moved.ack()


async def test_a_message_returned_too_often_is_dead_lettered(
    broker: Broker, fresh_names: Names
) -> None:
    dead = ExchangeSpec(f"warren.x.{fresh_names.new('dead')}", "topic")
    grave = QueueSpec(fresh_names.new("dead"), (Binding(dead, "#"),), {"x-queue-type": "quorum"})
    work = topology.verify_queue(fresh_names.environment)
    work = with_arguments(work, dead_letter_exchange=dead.name, delivery_limit=2)
    work = replace(work, needs=(dead,))
    await broker.declare([grave, work])
    hand, buried = Hand(), Hand()
    await broker.publish(to(work, b"poison", kind="trajectory.v1"))
    async with (
        broker.consume(work.name, 1, hand.take),
        broker.consume(grave.name, 1, buried.take),
    ):
        for _ in range(3):
            (await hand.next()).give_back()
        delivery = await buried.next()
        assert (delivery.body, delivery.kind) == (b"poison", "trajectory.v1")
        assert delivery.key == work.bindings[0].key
        assert await hand.stays_empty()


async def test_results_are_routed_per_audience_run_and_shard(
    broker: Broker, fresh_names: Names
) -> None:
    run, other = fresh_names.run, fresh_names.new("run")
    mine = topology.run_results_queue("collect", run)
    trainer = topology.run_results_queue("grpo", run)
    await broker.declare([mine, trainer])
    at_mine, at_trainer = Hand(), Hand()
    async with (
        broker.consume(mine.name, 10, at_mine.take),
        broker.consume(trainer.name, 10, at_trainer.take),
    ):
        for shard in (0, 3):
            key = topology.result_key("collect", run, shard)
            await broker.publish(Outgoing(topology.RESULT.name, key, key.encode()))
        key = topology.result_key("grpo", run, 1)
        await broker.publish(Outgoing(topology.RESULT.name, key, b"grpo"))
        with pytest.raises(Unroutable):
            await broker.publish(
                Outgoing(topology.RESULT.name, topology.result_key("collect", other, 0), b"x")
            )
        expected = [topology.result_key("collect", run, shard).encode() for shard in (0, 3)]
        assert await at_mine.next_bodies(2) == expected
        assert await at_trainer.next_bodies(1) == [b"grpo"]
        assert await at_mine.stays_empty()


async def test_a_standing_sink_shard_takes_its_shard_of_every_run(
    broker: Broker, fresh_names: Names
) -> None:
    shard = 90_000 + hash(fresh_names.run) % 9_999
    queue = topology.sink_queue(shard)
    await broker.declare([queue])
    hand = Hand()
    async with broker.consume(queue.name, 10, hand.take):
        for run in (fresh_names.run, fresh_names.new("run")):
            key = topology.result_key("sink", run, shard)
            await broker.publish(Outgoing(topology.RESULT.name, key, run.encode()))
        assert (await hand.next_bodies(2))[0] == fresh_names.run.encode()
    await broker.delete(queue.name)


async def test_a_broadcast_reaches_every_worker(broker: Broker, fresh_names: Names) -> None:
    queues = [topology.control_queue(fresh_names.new("agent")) for _ in range(2)]
    await broker.declare(queues)
    hands = [Hand(), Hand()]
    async with (
        broker.consume(queues[0].name, 1, hands[0].take),
        broker.consume(queues[1].name, 1, hands[1].take),
    ):
        await broker.publish(Outgoing(topology.CONTROL.name, "", b"look"))
        assert [(await hand.next()).body for hand in hands] == [b"look", b"look"]


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
