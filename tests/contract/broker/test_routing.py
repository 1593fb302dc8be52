"""What every transport promises of the topology: rooms, held copies, dead letters, results."""

import asyncio
from dataclasses import replace

import pytest

from broker import topology
from broker.base import Broker, Outgoing
from broker.errors import Unroutable
from broker.topology import Binding, ExchangeSpec, QueueSpec
from tests.conftest import Names
from tests.support.hand import Hand
from tests.support.queues import MakeBroker, to, with_arguments


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


async def test_what_expires_is_dead_lettered_and_coming_back_prolongs_nothing(
    broker: Broker, fresh_names: Names
) -> None:
    dead = ExchangeSpec(f"warren.x.{fresh_names.new('dead')}", "topic")
    grave = QueueSpec(fresh_names.new("dead"), (Binding(dead, "#"),), {"x-queue-type": "quorum"})
    work = topology.task_queue("normal", fresh_names.environment)
    work = replace(with_arguments(work, dead_letter_exchange=dead.name), needs=(dead,))
    await broker.declare([grave, work])
    hand, buried = Hand(), Hand()
    await broker.publish(to(work, b"held", expires_s=0.5))
    async with broker.consume(work.name, 1, hand.take):
        held = await hand.next()
    await broker.publish(to(work, b"ready", kind="task.v1", expires_s=0.5))
    await broker.publish(to(work, b"for ever"))
    async with broker.consume(grave.name, 5, buried.take):
        ready = await buried.next()
        assert (ready.body, ready.kind, ready.key) == (b"ready", "task.v1", work.bindings[0].key)
        assert ready.headers["x-first-death-reason"] == "expired"
        held.give_back()
        assert (await buried.next()).body == b"held"
        async with broker.consume(work.name, 5, hand.take):
            assert await hand.next_bodies(1) == [b"for ever"]
            assert await hand.stays_empty()


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
