"""Test queues: messages to them, and the same queues with other arguments."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from broker.base import Broker, Outgoing
from broker.memory import MemoryBroker
from broker.rabbitmq import RabbitBroker
from broker.topology import Argument, QueueSpec
from tests.support.hand import Hand

MakeBroker = Callable[[], Awaitable[MemoryBroker | RabbitBroker]]


def to(queue: QueueSpec, body: bytes = b"x", **more: Any) -> Outgoing:
    """A message that this queue gets."""
    binding = queue.bindings[0]
    return Outgoing(binding.exchange.name, binding.key, body, **more)


async def publish_all(broker: Broker, queue: QueueSpec, bodies: list[bytes]) -> None:
    """All at once; each is confirmed."""
    async with asyncio.TaskGroup() as group:
        for body in bodies:
            group.create_task(broker.publish(to(queue, body)))


async def everything_in(broker: Broker, queue: QueueSpec, wanted: set[bytes]) -> None:
    """Take from the queue until all of these have come. A message may come twice."""
    hand, came = Hand(), set[bytes]()
    async with broker.consume(queue.name, 300, hand.take):
        while not wanted <= came:
            came |= set(await hand.next_bodies(1))


def with_arguments(queue: QueueSpec, **arguments: Argument) -> QueueSpec:
    """The queue, its arguments changed: `max_length` is `x-max-length`."""
    named = {"x-" + name.replace("_", "-"): value for name, value in arguments.items()}
    return replace(queue, arguments={**queue.arguments, **named})
