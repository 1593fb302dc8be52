"""The embedded broker: the promises of `base.py` without a server, for one process.

    broker = MemoryBroker()          # a new node, and a connection to it
    other = broker.connect()         # another connection to the same node, as another process has

Closing a connection gives back what it held; `break_connection` does what a cut cable does.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Final

from broker.base import OnDelivery, Outgoing, QueueDepth, Sender
from broker.codec import MAX_BODY_BYTES
from broker.errors import BrokerClosed, BrokerError, QueueFull, TooLarge, Unroutable
from broker.memory_node import MemoryNode, Stored
from broker.topology import QueueSpec

#: Publishing never blocks here, so a producer must let the consumers have the loop now and then.
YIELD_EVERY: Final = 16


class MemoryDelivery:
    """A message in hand (base.Delivery)."""

    __slots__ = (
        "_consumer",
        "_stored",
        "body",
        "exchange",
        "headers",
        "key",
        "kind",
        "queue",
        "redelivered",
    )

    def __init__(self, consumer: "_Consumer", stored: Stored) -> None:
        self._consumer: _Consumer | None = consumer
        self._stored = stored
        self.body = stored.body
        self.kind = stored.kind
        self.headers = stored.headers
        self.queue = consumer.queue
        self.exchange = stored.exchange
        self.key = stored.key
        self.redelivered = stored.redelivered

    @property
    def live(self) -> bool:
        return self._consumer is not None

    def ack(self) -> None:
        if (consumer := self._leave_hand()) is not None:
            consumer.wake()

    def give_back(self) -> None:
        if (consumer := self._leave_hand()) is not None:
            consumer.node.give_back(self.queue, self._stored)
            consumer.wake()

    def _leave_hand(self) -> "_Consumer | None":
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            del consumer.in_hand[self]
        return consumer


class _Consumer:
    """What one consumer of one connection has in hand (memory_node.Taker)."""

    def __init__(
        self, node: MemoryNode, queue: str, prefetch: int | None, on_delivery: OnDelivery
    ) -> None:
        self.node = node
        self.queue = queue
        self.in_hand: dict[MemoryDelivery, None] = {}
        self._prefetch = prefetch
        self._on_delivery = on_delivery

    def has_room(self) -> bool:
        return self._prefetch is None or len(self.in_hand) < self._prefetch

    def take(self, message: Stored) -> None:
        delivery = MemoryDelivery(self, message)
        self.in_hand[delivery] = None
        if self._prefetch is None:
            delivery.ack()
        self._on_delivery(delivery)

    def wake(self) -> None:
        """There is room again."""
        self.node.wake(self.queue)

    def give_all_back(self) -> None:
        """In the order in which they came, in front of what is ready."""
        for delivery in reversed(list(self.in_hand)):
            delivery.give_back()


class MemoryBroker:
    """One connection to an embedded node (base.Broker)."""

    def __init__(self, node: MemoryNode | None = None) -> None:
        self.reconnects = 0
        self._node = node or MemoryNode()
        self._consumers: dict[_Consumer, None] = {}
        self._declared: dict[str, QueueSpec] = {}
        self._closed = False
        self._until_yield = YIELD_EVERY

    def connect(self) -> "MemoryBroker":
        """Another connection to the same node."""
        return MemoryBroker(self._node)

    def break_connection(self) -> None:
        """What a cut cable and a reconnect do: everything in hand is taken back, then we go on."""
        active = [c for c in self._consumers if self._node.detach(c.queue, c)]
        for consumer in self._consumers:
            consumer.give_all_back()
        for consumer in active:
            self._node.attach(consumer.queue, consumer)
        self.reconnects += 1

    @property
    def connected(self) -> bool:
        return not self._closed

    async def declare(self, queues: Sequence[QueueSpec]) -> None:
        self._check_open()
        for queue in queues:
            self._node.declare(queue)
            self._declared[queue.name] = queue

    async def publish(self, message: Outgoing) -> None:
        try:
            self._put(message)
        except Unroutable:  # somebody has taken a queue away
            await self.declare(list(self._declared.values()))
            self._put(message)
        self._until_yield -= 1
        if self._until_yield <= 0:
            self._until_yield = YIELD_EVERY
            await asyncio.sleep(0)

    def post(self, message: Outgoing, sender: Sender) -> None:
        try:
            self._put(message)
        except (BrokerError, TooLarge) as e:
            sender.on_end(e)
        else:
            sender.on_end(None)

    def _put(self, message: Outgoing) -> None:
        self._check_open()
        if len(message.body) > MAX_BODY_BYTES:
            raise TooLarge(f"{len(message.body)} bytes, at most {MAX_BODY_BYTES} can be sent")
        self._node.publish(message)

    def publish_hint(self, message: Outgoing) -> None:
        if not self._closed and len(message.body) <= MAX_BODY_BYTES:
            with contextlib.suppress(Unroutable, QueueFull):
                self._node.publish(message)

    @asynccontextmanager
    async def consume(
        self, queue: str, prefetch: int | None, on_delivery: OnDelivery
    ) -> AsyncGenerator[None]:
        self._check_open()
        if prefetch is not None and prefetch < 1:
            raise ValueError(f"prefetch must be at least 1, not {prefetch}")
        if queue not in self._node.queues:
            raise BrokerError(f"cannot consume {queue}: no such queue")
        consumer = _Consumer(self._node, queue, prefetch, on_delivery)
        self._consumers[consumer] = None
        self._node.attach(queue, consumer)
        try:
            yield
        finally:
            self._node.detach(queue, consumer)
            if not consumer.in_hand:
                self._consumers.pop(consumer, None)

    async def depth(self, queue: str) -> QueueDepth | None:
        self._check_open()
        known = self._node.queues.get(queue)
        return None if known is None else QueueDepth(len(known.ready), len(known.consumers))

    async def delete(self, queue: str) -> None:
        self._check_open()
        self._declared.pop(queue, None)
        self._node.delete(queue)

    async def close(self) -> None:
        self._closed = True
        for consumer in self._consumers:
            self._node.detach(consumer.queue, consumer)
        for consumer in self._consumers:
            consumer.give_all_back()
        self._consumers.clear()

    def _check_open(self) -> None:
        if self._closed:
            raise BrokerClosed("this connection to the embedded broker is closed")
