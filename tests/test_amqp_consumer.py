"""A consumer's channels: how a prefetch is shared, and what happens when one of them dies."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp.commands import Basic

from broker import topology
from broker.amqp_consumer import SHARE, shares
from broker.base import Outgoing
from broker.rabbitmq import RabbitBroker
from broker.topology import QueueSpec
from tests.conftest import Names
from tests.support.hand import Hand, until

#: A tag that was never given out: the broker closes the channel of whoever settles it.
_UNKNOWN_TAG = 99_999


@pytest.fixture
async def broker(rabbitmq: Any) -> AsyncIterator[RabbitBroker]:
    broker = await RabbitBroker.connect(rabbitmq.url)
    yield broker
    await broker.close()


@pytest.fixture
async def queue(broker: RabbitBroker, fresh_names: Names) -> QueueSpec:
    queue = topology.verify_queue(fresh_names.environment)
    await broker.declare([queue])
    return queue


async def _publish(broker: RabbitBroker, queue: QueueSpec, body: bytes) -> None:
    binding = queue.bindings[0]
    await broker.publish(Outgoing(binding.exchange.name, binding.key, body, "trajectory.v1"))


@given(prefetch=st.integers(1, 65_535), channels=st.integers(0, 2047))
def test_shares_add_up_to_the_prefetch_and_none_is_without_bound(
    prefetch: int, channels: int
) -> None:
    split = shares(prefetch, channels)
    assert sum(split) == prefetch
    assert min(split) >= 1
    assert max(split) - min(split) <= 1
    assert len(split) <= max(channels, 1)
    assert max(split) <= SHARE or len(split) == max(channels, 1)


async def test_a_consumer_whose_channel_the_broker_closes_is_restored(
    broker: RabbitBroker, queue: QueueSpec
) -> None:
    hand = Hand()
    async with broker.consume(queue.name, 1, hand.take):
        await _publish(broker, queue, b"1")
        held = await hand.next()
        (consumer,) = broker._consumers
        consumer.channels[0].say(Basic.Ack(delivery_tag=_UNKNOWN_TAG))
        again = await hand.next()
        assert (again.body, again.redelivered) == (b"1", True)
        assert not held.live
        again.ack()


async def test_when_one_of_several_channels_dies_the_others_keep_theirs_and_the_bound_holds(
    broker: RabbitBroker, queue: QueueSpec
) -> None:
    hand, prefetch = Hand(), 3 * SHARE
    async with broker.consume(queue.name, prefetch, hand.take):
        for i in range(prefetch + 5):
            await _publish(broker, queue, b"%d" % i)
        held = [await hand.next() for _ in range(prefetch)]
        (consumer,) = broker._consumers
        assert [channel.share for channel in consumer.channels] == [SHARE] * 3
        consumer.channels[1].say(Basic.Ack(delivery_tag=_UNKNOWN_TAG))
        again = [await hand.next() for _ in range(SHARE)]
        assert all(delivery.redelivered for delivery in again)
        assert await hand.stays_empty()
        living = [delivery for delivery in (*held, *again) if delivery.live]
        assert len({delivery.body for delivery in living}) == len(living) == prefetch
        for delivery in living:
            delivery.ack()
        assert len(await hand.next_bodies(5)) == 5


async def test_a_small_prefetch_needs_one_channel_and_a_large_one_leaves_most_to_others(
    broker: RabbitBroker, queue: QueueSpec
) -> None:
    async def channels(prefetch: int) -> int:
        async with broker.consume(queue.name, prefetch, Hand().take):
            (consumer,) = broker._consumers
            return len(consumer.channels)

    assert await channels(SHARE) == 1
    assert await channels(SHARE + 1) == 2
    assert 2 < await channels(65_535) <= 32
    assert broker._consuming is not None
    link = broker._consuming

    async def all_have_closed() -> bool:  # since nothing was in hand
        return link.channels_left > 1000

    await until(all_have_closed)
