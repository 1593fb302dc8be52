"""Test queues: messages to them, and the same queues with other arguments."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from broker.base import Outgoing
from broker.memory import MemoryBroker
from broker.rabbitmq import RabbitBroker
from broker.topology import Argument, QueueSpec

MakeBroker = Callable[[], Awaitable[MemoryBroker | RabbitBroker]]


def to(queue: QueueSpec, body: bytes = b"x", **more: Any) -> Outgoing:
    """A message that this queue gets."""
    binding = queue.bindings[0]
    return Outgoing(binding.exchange.name, binding.key, body, **more)


def with_arguments(queue: QueueSpec, **arguments: Argument) -> QueueSpec:
    """The queue, its arguments changed: `max_length` is `x-max-length`."""
    named = {"x-" + name.replace("_", "-"): value for name, value in arguments.items()}
    return replace(queue, arguments={**queue.arguments, **named})
