"""The seam: what Warren asks of whatever carries its messages.

Two implementations keep these promises and pass the same contract tests: `memory.py` (embedded)
and `rabbitmq.py`. A reader who knows this file knows the system: everything else is a function
from a `Delivery` to more `Outgoing`s.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final, Protocol

import msgspec

from broker.errors import WarrenError
from broker.topology import QueueSpec

Header = str | int

#: On a message of which another copy may be under way: its publisher does not know, or died.
AGAIN_HEADER: Final = "warren-again"
#: AMQP's counts of messages in hand have two bytes.
MAX_PREFETCH: Final = 65_535


class Outgoing(msgspec.Struct, frozen=True):
    """A message on its way to an exchange."""

    exchange: str
    key: str
    body: bytes
    kind: str = ""
    """The message's type and schema version, `task.v1`."""
    headers: Mapping[str, Header] = {}
    persistent: bool = True
    expires_s: float | None = None
    """Dead-lettered (reason `expired`) when it is ready for longer than this; coming back to its
    queue does not prolong it. Queues look at their first message only."""


class Delivery(Protocol):
    """A message in our hands. Settle it exactly once, after its effect is durable.

    `ack` and `give_back` return at once and never raise: AMQP does not confirm them, and on a
    channel that has died the broker has already taken the message back (`live` is False then).
    """

    @property
    def body(self) -> bytes: ...
    @property
    def kind(self) -> str: ...
    @property
    def headers(self) -> Mapping[str, Header]: ...
    @property
    def queue(self) -> str:
        """The queue that it was consumed from."""
        ...

    @property
    def exchange(self) -> str:
        """The exchange that it was published to (the ladder's, after a wait there)."""
        ...

    @property
    def key(self) -> str:
        """Its routing key."""
        ...

    @property
    def redelivered(self) -> bool:
        """Whether somebody may have had it in hand before."""
        ...

    @property
    def live(self) -> bool:
        """Whether it is still ours: not settled, and its channel still open."""
        ...

    def ack(self) -> None:
        """Done: the broker forgets it."""
        ...

    def give_back(self) -> None:
        """Not done: back to the front of its queue, for anybody, at once."""
        ...


OnDelivery = Callable[[Delivery], None]
"""Called on the event loop for each delivery. It must not block: it starts a task and returns."""


class QueueDepth(msgspec.Struct, frozen=True):
    """How a queue stands."""

    ready: int
    consumers: int
    """At least one for each who consumes it: RabbitMQ counts the channels of a large prefetch."""


class Sender(Protocol):
    """Who posts a message, and hears how that ended. Waiting for it is left to him."""

    @property
    def wanted(self) -> bool:
        """Whether it is still to be sent, or sent again on a new connection."""
        ...

    def on_end(self, error: WarrenError | None) -> None:
        """The broker has taken it over, or what `publish` would raise. Called once, maybe before
        `post` returns. It must not block, post or publish: it notes it, and wakes who waits."""
        ...


class Broker(Protocol):
    """Publishes with confirmation, delivers with a bound, forgets nothing that it confirmed."""

    @property
    def reconnects(self) -> int:
        """How often the connection was restored. It growing means: hints may have been lost."""
        ...

    @property
    def connected(self) -> bool:
        """Whether publishing and consuming work right now (readiness)."""
        ...

    async def declare(self, queues: Sequence[QueueSpec]) -> None:
        """Create these queues with exchanges and bindings. Idempotent; redone on reconnect."""
        ...

    async def publish(self, message: Outgoing) -> None:
        """Return once the broker has taken the message over. Concurrent calls are pipelined.

        A connection that breaks meanwhile is waited for and the message published again, so a
        message may arrive twice, the second time with AGAIN_HEADER, and is never lost. A caller
        that is cancelled does not know whether it arrived.

        Where no queue takes it any more, what this connection declared is declared again, once.

        Raises: Unroutable (no queue is bound), QueueFull (a bounded queue refused it),
        TooLarge, BrokerLost (no confirmation within the broker's patience), BrokerClosed.
        """
        ...

    def post(self, message: Outgoing, sender: Sender) -> None:
        """As `publish`, but return at once; `sender` hears the end. Never blocks, never raises.

        For who waits for an answer anyway. Queues are not declared again: a `publish` after an
        Unroutable does that.
        """
        ...

    def publish_hint(self, message: Outgoing) -> None:
        """Send without confirmation; may be lost, never blocks, never raises. For replies."""
        ...

    def consume(
        self, queue: str, prefetch: int | None, on_delivery: OnDelivery
    ) -> AbstractAsyncContextManager[None]:
        """Deliver from `queue` while the context is open, at most `prefetch` unsettled at a time.

        Without a prefetch all that is there comes, settled already: for hints, which may be lost.

        Restored after a reconnect. Leaving the context stops deliveries; what is unsettled stays
        in hand and can still be settled until the broker is closed, which gives it back.
        """
        ...

    async def depth(self, queue: str) -> QueueDepth | None:
        """How the queue stands, or None where it does not exist."""
        ...

    async def delete(self, queue: str) -> None:
        """Delete a queue with all that is in it. Fine if it does not exist."""
        ...

    async def close(self) -> None:
        """Stop all consumers, give back what is unsettled, disconnect."""
        ...
