"""The embedded broker's queues and exchanges: RabbitMQ's rules, on one event loop, in this process.

Nothing here waits, polls or starts a task: publishing puts a message into its queues and wakes
them; a woken queue hands out what its consumers have room for at the loop's next turn. Memory is
what the queues hold. `memory.py` has the connections that stand between this and its users.
"""

import asyncio
import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

import msgspec

from broker.base import Header, Outgoing
from broker.errors import BrokerError, QueueFull, Unroutable
from broker.topology import ExchangeSpec, ExchangeType, QueueSpec, topic_matches

#: A dead letter that no queue takes yet is offered again this often (at-least-once).
DEAD_LETTER_RETRY_S: Final = 1.0
#: Resolved routes are remembered; keys are few, and this bounds them where they are not.
MAX_ROUTES: Final = 4096


class Stored(msgspec.Struct, eq=False):
    """A message in one queue."""

    exchange: str
    key: str
    body: bytes
    kind: str
    headers: Mapping[str, Header]
    redelivered: bool = False
    returns: int = 0
    """How often it was given back; beyond `x-delivery-limit` it is dead-lettered."""
    expires_s: float = math.inf
    """After how long, by its publisher's wish."""
    expires_at: float = math.inf
    """Loop time, kept when the message is given back."""


class Taker(Protocol):
    """A consumer, as its queue sees it."""

    def has_room(self) -> bool: ...
    def take(self, message: Stored) -> None: ...


class MemoryNode:
    """All queues and exchanges that one set of connections shares."""

    def __init__(self) -> None:
        self.queues: dict[str, MemoryQueue] = {}
        self._exchanges: dict[str, _Exchange] = {}
        self._routes: dict[tuple[str, str], list[MemoryQueue]] = {}
        self._orphans: dict[str, list[Taker]] = {}
        """Consumers of deleted queues, until somebody creates the queue again."""

    def declare(self, spec: QueueSpec) -> None:
        """Create a queue, its exchanges and bindings. Raises BrokerError on another definition."""
        known = self.queues.get(spec.name)
        if known is None:
            self.queues[spec.name] = MemoryQueue(self, spec, self._orphans.pop(spec.name, ()))
        elif known.spec.arguments != spec.arguments:
            raise BrokerError(_difference(known.spec, spec))
        for exchange in spec.needs:
            self._exchange(exchange)
        for binding in spec.bindings:
            self._exchange(binding.exchange).bindings[binding.key, spec.name] = None
        self._routes.clear()

    def delete(self, name: str) -> None:
        """Delete a queue and what is in it, if it exists."""
        queue = self.queues.pop(name, None)
        if queue is None:
            return
        if consumers := queue.drop():
            self._orphans[name] = consumers
        for exchange in self._exchanges.values():
            for binding in [b for b in exchange.bindings if b[1] == name]:
                del exchange.bindings[binding]
        self._routes.clear()

    def attach(self, name: str, consumer: Taker) -> None:
        """Deliver from this queue to this consumer too."""
        self.queues[name].consumers.append(consumer)
        self.queues[name].wake()

    def detach(self, name: str, consumer: Taker) -> bool:
        """Deliver nothing more to it. False where it was not attached."""
        queue = self.queues.get(name)
        takers = self._orphans.get(name, []) if queue is None else queue.consumers
        if consumer not in takers:
            return False
        takers.remove(consumer)
        if queue is not None:
            queue.wake()  # another one may be the active one now
        return True

    def give_back(self, name: str, message: Stored) -> None:
        """Return a message to the front of its queue, unless that was deleted meanwhile."""
        if name in self.queues:
            self.queues[name].give_back(message)

    def wake(self, name: str) -> None:
        """Somebody has room again."""
        queue = self.queues.get(name)
        if queue is not None and queue.ready:
            queue.wake()

    def publish(self, message: Outgoing) -> None:
        """Put into every queue it is routed to. Raises Unroutable, QueueFull."""
        queues = self._route(message.exchange, message.key)
        if not queues:
            raise Unroutable(message.exchange, message.key)
        full = None
        for queue in queues:
            if not queue.offer(_stored(message)):
                full = full or queue
        if full is not None:
            raise QueueFull(f"queue {full.spec.name} is full")

    def _exchange(self, spec: ExchangeSpec) -> "_Exchange":
        exchange = self._exchanges.setdefault(spec.name, _Exchange(spec.type, {}))
        if exchange.type != spec.type:
            raise BrokerError(f"exchange {spec.name} exists with type {exchange.type!r}")
        return exchange

    def _route(self, exchange: str, key: str) -> "list[MemoryQueue]":
        route = self._routes.get((exchange, key))
        if route is None:
            if len(self._routes) >= MAX_ROUTES:
                self._routes.clear()
            route = self._routes[exchange, key] = self._resolve(exchange, key)
        return route

    def _resolve(self, exchange: str, key: str) -> "list[MemoryQueue]":
        known = self._exchanges.get(exchange)
        names = dict.fromkeys(known.matches(key)) if known else {}
        return [self.queues[name] for name in names]


@dataclass(slots=True)
class _Exchange:
    type: ExchangeType
    bindings: dict[tuple[str, str], None]
    """(key, queue), in the order in which they were made."""

    def matches(self, key: str) -> Iterator[str]:
        words = key.split(".")
        for pattern, queue in self.bindings:
            if self._takes(pattern, key, words):
                yield queue

    def _takes(self, pattern: str, key: str, words: list[str]) -> bool:
        if self.type == "topic":
            return topic_matches(pattern.split("."), words)
        return self.type == "fanout" or pattern == key


class MemoryQueue:
    """One queue: what is ready, in order, and who takes it."""

    def __init__(self, node: MemoryNode, spec: QueueSpec, consumers: Iterable[Taker]) -> None:
        self.spec = spec
        self.ready: deque[Stored] = deque()
        self.consumers = deque(consumers)
        self._node = node
        self._loop = asyncio.get_running_loop()
        self._woken = False
        self._timer: asyncio.TimerHandle | None = None
        arguments = spec.arguments
        self._ttl_s = float(arguments.get("x-message-ttl", math.inf)) / 1000
        self._may_expire = False
        """Whether a message with an end has ever come."""
        self._max_ready = float(arguments.get("x-max-length", math.inf))
        self._rejects = arguments.get("x-overflow") == "reject-publish"
        self._max_returns = float(arguments.get("x-delivery-limit", math.inf))
        self._single = bool(arguments.get("x-single-active-consumer", False))
        self._dead_exchange = str(arguments.get("x-dead-letter-exchange", ""))
        self._dead_key = arguments.get("x-dead-letter-routing-key")
        self._dead_surely = arguments.get("x-dead-letter-strategy") == "at-least-once"

    def offer(self, message: Stored) -> bool:
        """Append a new message. False where the queue is full and refuses."""
        if len(self.ready) >= self._max_ready:
            if self._rejects:
                return False
            self._bury(self.ready.popleft(), "maxlen")
        if self._ttl_s < math.inf or message.expires_s < math.inf:
            ttl_s = min(self._ttl_s, message.expires_s)
            message.expires_at = self._loop.time() + ttl_s
            self._may_expire = True
        self.ready.append(message)
        self.wake()
        return True

    def give_back(self, message: Stored) -> None:
        """Return a message to the front; dead-letter it where it came back too often."""
        message.redelivered = True
        message.returns += 1
        if message.returns > self._max_returns:
            self._bury(message, "delivery_limit")
        else:
            self.ready.appendleft(message)
            self.wake()

    def wake(self) -> None:
        """Hand out at the next turn of the loop."""
        if not self._woken:
            self._woken = True
            self._loop.call_soon(self._hand_out)

    def drop(self) -> list[Taker]:
        """Forget everything: the queue is deleted. Returns who consumed it."""
        consumers = list(self.consumers)
        self.ready.clear()
        self.consumers.clear()
        self._arm()
        return consumers

    def _hand_out(self) -> None:
        self._woken = False
        try:
            if self._may_expire:
                self._expire()
            while self.ready and (consumer := self._next_consumer()) is not None:
                consumer.take(self.ready.popleft())
        except BaseException:
            self.wake()  # one consumer's bug must not strand the rest; the loop reports it
            raise
        if self._may_expire:
            self._arm()

    def _next_consumer(self) -> Taker | None:
        if self._single:
            return self.consumers[0] if self.consumers and self.consumers[0].has_room() else None
        for _ in range(len(self.consumers)):
            consumer = self.consumers[0]
            self.consumers.rotate(-1)
            if consumer.has_room():
                return consumer
        return None

    def _expire(self) -> None:
        now = self._loop.time()
        while self.ready and self.ready[0].expires_at <= now:
            self._bury(self.ready.popleft(), "expired")

    def _arm(self) -> None:
        """Wake up when the head expires: nothing behind it does before, as in RabbitMQ."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.ready and self.ready[0].expires_at < math.inf:
            self._timer = self._loop.call_at(self.ready[0].expires_at, self.wake)

    def _bury(self, message: Stored, reason: str) -> None:
        if self._dead_exchange:
            key = message.key if self._dead_key is None else str(self._dead_key)
            why = {"x-first-death-reason": reason, "x-first-death-queue": self.spec.name}
            headers = {**why, **message.headers}
            self._send_dead(Outgoing(self._dead_exchange, key, message.body, message.kind, headers))

    def _send_dead(self, message: Outgoing) -> None:
        try:
            self._node.publish(message)
        except (Unroutable, QueueFull):
            if self._dead_surely:
                self._loop.call_later(DEAD_LETTER_RETRY_S, self._send_dead, message)


def _stored(message: Outgoing) -> Stored:
    return Stored(
        message.exchange,
        message.key,
        message.body,
        message.kind,
        message.headers,
        expires_s=math.inf if message.expires_s is None else message.expires_s,
    )


def _difference(known: QueueSpec, asked: QueueSpec) -> str:
    names = sorted({*known.arguments, *asked.arguments})
    name = next(n for n in names if known.arguments.get(n) != asked.arguments.get(n))
    return (
        f"queue {asked.name} exists with {name}={known.arguments.get(name)!r}, "
        f"asked for {asked.arguments.get(name)!r}"
    )
