"""A call that is out: what was asked, and what broker, journal and executors have said of it since.

The broker's word comes apart from the replies. A reply may be lost, since a sweep finds its result;
a refusal may not, since nobody else knows of it.
"""

import asyncio
import math
import time
from collections.abc import Callable, Container
from typing import Final

import msgspec

from broker.base import Broker
from broker.crashpoints import crash_at
from broker.errors import WarrenError
from broker.messages import Call, Reply
from broker.topology import QueueSpec, call_queue

#: After a journal was lost, calls that nobody has are published again this much later. What was
#: being executed has lost its claim too, and would run twice if it took longer than this.
LOST_GRACE_S: Final = 30.0


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """One call to make: what, where to, and what it becomes when nobody answers in time."""

    path: str
    request_hash: bytes
    exchange: str
    key: str
    message: Callable[..., Call]
    """Makes the message from those fields of `Call` that its owner knows; it has all others."""
    timeout_s: float
    on_timeout: Callable[[], bytes]
    """The packed result that says so."""
    wait_s: float | None = None
    """How long it may wait until somebody begins on it; None: until its deadline."""
    on_wait: Callable[[], bytes] | None = None
    """The packed result that says that nobody did."""
    queue: QueueSpec | None = None
    """Where it goes, if nobody else is sure to have declared that: models that code names."""


class Waiting(msgspec.Struct, eq=False):
    """A call that is out (base.Sender)."""

    ask: Ask
    broker: Broker
    loop: asyncio.AbstractEventLoop
    deadline: float
    """Unix seconds."""
    begin_by: float
    """Unix seconds; infinite once it is known that somebody has begun."""
    reply: asyncio.Future[Reply | None]
    lost_at: float | None = None
    """Loop time at which the journal that knew of this call was lost."""
    published_in: float = math.inf
    """How many reconnects there had been when the broker confirmed it; infinite until then."""
    sending: bool = True
    """Whether its newest copy is neither confirmed nor refused."""
    refusal: WarrenError | None = None
    """Why the broker did not take it. Kept apart from replies, which may get lost."""
    wanted: bool = True
    """Until it has its answer."""
    look_at: float = 0.0
    """Loop time before which nobody need look what became of it."""
    missed: bool = False
    """Whether the broker may have lost it, and nobody had it when we looked last."""
    trusted_until: float = 0.0
    """Loop time before which it says nothing of this call that its queue is empty."""

    @property
    def queue(self) -> str:
        """Where it waits until somebody begins on it."""
        return call_queue(self.ask.exchange, self.ask.key)

    def may_be_lost(self, reconnects: int, at: float) -> bool:
        """Whether, at this loop time, it is to be published again if nobody has it.

        Not what is still being sent. Once its journal was lost, not before whoever executed it has
        had time to finish.
        """
        if self.sending:
            return False
        if self.lost_at is None:
            return self.missed or self.published_in < reconnects
        return at - self.lost_at >= LOST_GRACE_S

    def may_have_vanished(self, empty: Container[str], at: float) -> bool:
        """Whether, at this loop time, it should wait in one of these queues, which are empty."""
        return not self.sending and self.trusted_until <= at and self.queue in empty

    def on_end(self, error: WarrenError | None) -> None:
        """The broker has it, or refused it."""
        if error is None:
            self.published()
        else:
            self.refusal = error
            self.hear(None)

    def published(self) -> None:
        """The broker has it."""
        self.sending = False
        self.published_in = self.broker.reconnects
        crash_at("owner.after_publish")

    def hear(self, reply: Reply | None) -> None:
        """Wake who waits; None: to see the refusal."""
        if not self.reply.done():
            self.reply.set_result(reply)

    def fail(self, error: Exception) -> None:
        if not self.reply.done():
            self.reply.set_exception(error)

    def wait_on(self) -> None:
        """That was not its end: what comes from now on is heard too."""
        self.reply = self.loop.create_future()


def waiting_for(ask: Ask, broker: Broker, loop: asyncio.AbstractEventLoop) -> Waiting:
    """A call that is about to be posted."""
    now = time.time()
    begin_by = math.inf if ask.wait_s is None else now + ask.wait_s
    return Waiting(ask, broker, loop, now + ask.timeout_s, begin_by, loop.create_future())
