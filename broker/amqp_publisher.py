"""Publishing with confirmation: many messages in flight, none lost, no confirm taken for another.

A publish takes its delivery tag in the same step in which its bytes are put on the wire, with no
await between: so a caller that is cancelled can't shift the count (queues.md, P6). What was not
confirmed when a channel died goes to the front of the backlog and is published again on the next.
"""

import asyncio
import contextlib
import logging
import math
from collections import deque
from itertools import takewhile
from typing import Final

import msgspec
from pamqp import commands

from broker import amqp_frames as frames
from broker.amqp_channel import Channel, ChannelDied
from broker.amqp_link import Link
from broker.base import AGAIN_HEADER, Outgoing, Sender
from broker.errors import (
    BrokerClosed,
    BrokerError,
    BrokerLost,
    QueueFull,
    TooLarge,
    Unroutable,
    WarrenError,
)

log = logging.getLogger(__name__)

#: Unconfirmed messages: enough to keep the broker busy, few to publish again. All on one channel,
#: so that one process in the broker takes what we send in one turn, and confirms it in one.
WINDOW: Final = 512
#: Of replies that wait for room in the socket. One that is dropped is missed for a sweep's time.
LATE_HINTS_BYTES: Final = 64 * 1024 * 1024
#: A message that takes its channel down this often is the reason itself.
MAX_DEATHS: Final = 5


class _Pending(msgspec.Struct):
    message: Outgoing
    sender: Sender
    since_s: float = math.inf
    """When it was sent, on the publisher's clock, which stands still while the broker blocks or is
    away. What waits for its turn is not late, however long the backlog: the window moves."""
    deaths: int = 0
    over: bool = False

    def end(self, error: WarrenError | None) -> None:
        """Tell its sender, once."""
        if not self.over:
            self.over = True
            self.sender.on_end(error)

    def is_due(self) -> bool:
        """Whether it is to be sent, and not over or unwanted by now."""
        if not self.over and not self.sender.wanted:
            self.end(BrokerError("nobody wants it sent any more"))
        return not self.over


class _Awaited:
    """The sender of what somebody awaits; who is cancelled does not want it any more."""

    __slots__ = ("done",)

    def __init__(self) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def wanted(self) -> bool:
        return not self.done.done()

    def on_end(self, error: WarrenError | None) -> None:
        if self.done.done():
            return
        if error is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(error)


class Publisher:
    """Outlives links: hand it a new one after a loss."""

    def __init__(self, patience_s: float, outage_s: float) -> None:
        """A broker that is there confirms what it was sent within `patience_s`; one may be away for
        `outage_s`."""
        self._patience_s = patience_s
        self._outage_s = outage_s
        self._away_s = 0.0
        self._clock_s = 0.0
        self._backlog: deque[_Pending] = deque()
        self._link: Link | None = None
        self._channel: _ConfirmChannel | None = None
        self._hints: Channel | None = None
        self._late_hints: deque[Outgoing] = deque()
        self._late_bytes = 0
        self._closed = False
        self._lost_hints = 0
        """Since the socket was last free."""

    def publish(self, message: Outgoing) -> asyncio.Future[None]:
        """Done when it is confirmed."""
        awaited = _Awaited()
        self.post(message, awaited)
        return awaited.done

    def post(self, message: Outgoing, sender: Sender) -> None:
        """The sender hears when it is confirmed."""
        if self._closed:
            return sender.on_end(BrokerClosed("this broker connection was closed"))
        pending, channel = _Pending(message, sender), self._channel
        if channel is not None and not self._backlog and channel.has_room():
            channel.send(pending, self._clock_s)
        else:
            self._backlog.append(pending)
            self.pump()

    def hint(self, message: Outgoing) -> None:
        """Send without confirmation; while the socket is full a bounded lot of them waits."""
        link = self._link
        if link is not None and not (link.wire.full or link.wire.blocked or self._late_hints):
            self._send_hint(link, message)
        elif self._late_bytes + len(message.body) <= LATE_HINTS_BYTES:
            self._late_hints.append(message)
            self._late_bytes += len(message.body)
            asyncio.get_running_loop().call_soon(self.pump)  # when this turn's writes have left
        else:
            self._lose_hint("the socket is full")

    def _send_hint(self, link: Link, message: Outgoing) -> None:
        try:
            if self._hints is None or self._hints.died is not None:
                self._hints = Channel(link)
            self._hints.publish(message, b"", mandatory=False)
        except (ChannelDied, ValueError) as e:
            self._lose_hint(str(e))

    def _lose_hint(self, why: str) -> None:
        if not self._lost_hints:
            log.warning("replies are dropped, sweeps will find them", extra={"error": why})
        self._lost_hints += 1

    def use(self, link: Link) -> None:
        """Publish on this link from now on."""
        self._link = link
        self.pump()

    def pump(self) -> None:
        """Send what waits, as far as the windows and the socket have room."""
        link = self._link
        if link is None or link.wire.lost or link.wire.blocked:
            return
        while self._late_hints and not link.wire.full:
            hint = self._late_hints.popleft()
            self._late_bytes -= len(hint.body)
            self._send_hint(link, hint)
        if self._lost_hints and not link.wire.full:
            log.warning("replies were dropped", extra={"count": self._lost_hints})
            self._lost_hints = 0
        channel = self._channel or self._open_channel(link)
        while self._backlog and channel is not None and channel.has_room():
            pending = self._backlog.popleft()
            if pending.is_due():
                channel.send(pending, self._clock_s)

    def on_room(self) -> None:
        """The window has room again."""
        if self._backlog:
            self.pump()

    def tick(self, seconds: float) -> None:
        """Time passed: give up what has waited for too long."""
        link = self._link
        if link is None or link.wire.lost:
            self._away_s += seconds
            if self._away_s > self._outage_s:
                for pending in self._all():
                    pending.end(BrokerLost(f"RabbitMQ has been away for {self._outage_s:g} s"))
            return
        self._away_s = 0.0
        if link.wire.blocked:
            return
        self._clock_s += seconds
        latest_s = self._clock_s - self._patience_s
        for pending in self._all():
            if pending.since_s <= latest_s:
                pending.end(_not_confirmed(pending.message, self._patience_s))
        self.pump()

    def close(self) -> None:
        """Fail what waits."""
        self._closed = True
        for pending in self._all():
            pending.end(BrokerClosed("closed before it was confirmed"))
        self._backlog.clear()

    def on_died(self, channel: "_ConfirmChannel", why: ChannelDied) -> None:
        """Publish what it had not confirmed on another channel, but for who killed it."""
        if channel is self._channel:
            self._channel = None
        unconfirmed, channel.unconfirmed = channel.unconfirmed, {}
        again = []
        for pending in unconfirmed.values():
            if not pending.is_due():
                continue
            pending.deaths += why.code != 0
            error = _blame(pending, why)
            if error is None:
                pending.message = _again(pending.message)
                again.append(pending)
            else:
                pending.end(error)
        self._backlog.extendleft(reversed(again))
        if not self._closed:
            asyncio.get_running_loop().call_soon(self.pump)

    def _open_channel(self, link: Link) -> "_ConfirmChannel | None":
        with contextlib.suppress(ChannelDied):  # the link is going down; the next one will do
            self._channel = _ConfirmChannel(link, self)
        return self._channel

    def _all(self) -> list[_Pending]:
        unconfirmed = self._channel.unconfirmed.values() if self._channel is not None else ()
        return [*unconfirmed, *self._backlog]


class _ConfirmChannel(Channel):
    def __init__(self, link: Link, publisher: Publisher) -> None:
        self.unconfirmed: dict[int, _Pending] = {}
        """By delivery tag, in the order in which they were sent."""
        self._publisher = publisher
        self._last_tag = 0
        super().__init__(link)
        self._send(commands.Confirm.Select())

    def has_room(self) -> bool:
        """Whether one more may be sent now."""
        wire = self._wire
        return len(self.unconfirmed) < WINDOW and not (wire.full or wire.blocked or wire.lost)

    def send(self, pending: _Pending, now_s: float) -> None:
        tag = self._last_tag + 1
        pending.since_s = now_s
        try:
            self.publish(pending.message, b"%d" % tag, mandatory=True)
        except ValueError as e:
            return pending.end(BrokerError(str(e)))
        self._last_tag = tag
        self.unconfirmed[tag] = pending

    def on_return(self, header: bytes) -> None:
        pending = self.unconfirmed.get(int(frames.properties(header).message_id))
        if pending is not None:  # its confirm follows
            pending.end(Unroutable(pending.message.exchange, pending.message.key))

    def on_confirm(self, tag: int, multiple: bool, taken: bool) -> None:
        for each in list(takewhile(tag.__ge__, self.unconfirmed)) if multiple else (tag,):
            pending = self.unconfirmed.pop(each, None)
            if pending is not None:
                pending.end(None if taken else _full(pending.message))
        self._publisher.on_room()

    def on_died(self, why: ChannelDied) -> None:
        self._publisher.on_died(self, why)


def _full(message: Outgoing) -> QueueFull:
    return QueueFull(f"a queue behind {message.exchange!r}, key {message.key!r}, is full")


def _not_confirmed(message: Outgoing, patience_s: float) -> BrokerLost:
    return BrokerLost(
        f"RabbitMQ is there and has not confirmed a message to {message.exchange!r}, key"
        f" {message.key!r}, within {patience_s:g} s: its log says what that queue waits for"
    )


def _again(message: Outgoing) -> Outgoing:
    """The broker may have taken it all the same: only its word was lost."""
    return msgspec.structs.replace(message, headers={**message.headers, AGAIN_HEADER: 1})


def _blame(pending: _Pending, why: ChannelDied) -> BrokerError | TooLarge | None:
    """The error of the message that the broker closed the channel for; None for its neighbours."""
    message = pending.message
    if why.code == 404 and f"'{message.exchange}'" in why.text:
        return Unroutable(message.exchange, message.key)
    if why.code == 403 and f"'{message.exchange}'" in why.text:
        return BrokerError(f"not allowed to publish to {message.exchange}: {why.text}")
    if why.code == 406 and f"message size {len(message.body)} " in why.text:
        return TooLarge(f"the broker refuses {len(message.body)} bytes: {why.text}")
    if pending.deaths >= MAX_DEATHS:
        return BrokerError(f"the broker closed the channel {MAX_DEATHS} times: {why}")
    return None
