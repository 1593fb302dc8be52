"""Consuming: channels of a consumer, settlements gathered into one write per turn of the loop.

A delivery lives as long as its channel: when that dies, the broker has taken the message back, and
settling it does nothing. The channel of a consumer that has stopped stays open until what it still
had in hand is settled.

RabbitMQ keeps what a channel has not settled in a list (its channel process, and a classic queue's
process once more), and walks it from the front for each settlement that comes out of order, as
ours do. So a consumer that may hold many messages gets several channels, each with its share.
"""

import asyncio
from collections import deque
from collections.abc import Mapping
from typing import Final

from pamqp import commands

from broker import amqp_frames as frames
from broker.amqp_channel import Channel, ChannelDied
from broker.amqp_link import Link
from broker.base import Header, OnDelivery

#: Unsettled messages of one channel: some 20 are walked over then, where 1,000 made it 300.
SHARE: Final = 64
#: One consumer opens at most this part of the channels that its connection has left.
_LEAST_OTHERS: Final = 32


class RabbitDelivery:
    """A message in hand (base.Delivery). What came with it is read when somebody looks at it."""

    __slots__ = (
        "_channel",
        "_content",
        "_payload",
        "_properties",
        "_tag",
        "body",
        "queue",
        "redelivered",
    )

    def __init__(
        self, channel: "ConsumerChannel", payload: bytes, content: bytes, body: bytes
    ) -> None:
        self._tag, self.redelivered = frames.delivery(payload)
        self._channel = channel
        self._payload = payload
        self._content = content
        self._properties: frames.Properties | None = None
        self.body = body
        self.queue = channel.consumer.queue
        if channel.consumer.prefetch is not None:
            channel.unsettled[self._tag] = self

    @property
    def kind(self) -> str:
        return self._read().kind

    @property
    def headers(self) -> Mapping[str, Header]:
        return self._read().headers

    @property
    def exchange(self) -> str:
        return frames.address(self._payload)[0]

    @property
    def key(self) -> str:
        return frames.address(self._payload)[1]

    @property
    def live(self) -> bool:
        return self._tag in self._channel.unsettled

    def ack(self) -> None:
        self._channel.settle(self._tag, done=True)

    def give_back(self) -> None:
        self._channel.settle(self._tag, done=False)

    def _read(self) -> frames.Properties:
        if self._properties is None:
            self._properties = frames.properties(self._content)
        return self._properties


class Consumer:
    """What a caller asked for; it outlives the channels that serve it."""

    def __init__(self, queue: str, prefetch: int | None, on_delivery: OnDelivery) -> None:
        self.queue = queue
        self.prefetch = prefetch
        """Over all channels. None: the broker forgets each message as it sends it."""
        self.on_delivery = on_delivery
        self.channels: list[ConsumerChannel] = []
        self.stopped = False

    @property
    def served(self) -> bool:
        """Whether messages can come right now, as many as were asked for."""
        return bool(self.channels) and all(channel.consuming for channel in self.channels)

    async def start(self, link: Link) -> None:
        """Consume on this link from now on, in place of channels that have died. Raises
        ChannelDied."""
        serving = [channel for channel in self.channels if channel.consuming]
        added: list[ConsumerChannel] = []
        try:
            for share in self._missing(serving, link):
                added.append(ConsumerChannel(link, self, share))
            self.channels = [*serving, *added]
            for channel in added:
                await channel.begun()
        except BaseException:
            for channel in added:
                channel.close()
            raise

    def _missing(self, serving: "list[ConsumerChannel]", link: Link) -> list[int]:
        """What each channel to be added may hold; 0 is without end."""
        if self.prefetch is None:
            return [] if serving else [0]
        left = self.prefetch - sum(channel.share for channel in serving)
        return shares(left, link.channels_left // _LEAST_OTHERS)

    def stop(self) -> None:
        """No more deliveries; what is in hand stays there."""
        self.stopped = True
        for channel in self.channels:
            channel.finish()


def shares(prefetch: int, channels: int) -> list[int]:
    """The prefetch of each channel: about SHARE, or more where only so many may be opened."""
    count = min(-(-prefetch // SHARE), max(channels, 1))
    return [prefetch // count + (index < prefetch % count) for index in range(count)]


class ConsumerChannel(Channel):
    """One consumer, or its share, on one link."""

    def __init__(self, link: Link, consumer: Consumer, share: int) -> None:
        self.consumer = consumer
        self.share = share
        self.consuming = False
        self.unsettled: dict[int, RabbitDelivery] = {}
        """By delivery tag, in the order in which they came."""
        self._loop = asyncio.get_running_loop()
        self._came: deque[RabbitDelivery] = deque()
        self._acked: list[int] = []
        self._given_back: list[int] = []
        super().__init__(link)
        self.consuming = self.died is None
        no_ack = consumer.prefetch is None
        self._begun = [
            self._open,
            self._send(commands.Basic.Qos(prefetch_count=share)),
            self._send(
                commands.Basic.Consume(queue=consumer.queue, consumer_tag="c", no_ack=no_ack)
            ),
        ]

    async def begun(self) -> None:
        """Wait until the broker has agreed. Raises ChannelDied."""
        for answer in self._begun:
            await answer

    def finish(self) -> None:
        """Stop consuming; close once nothing is in hand."""
        if self.consuming and self.died is None:
            self.consuming = False
            self.say(commands.Basic.Cancel(consumer_tag="c", nowait=True))
        self._close_when_empty()

    def on_deliver(self, payload: bytes, header: bytes, body: bytes) -> None:
        if not self._came:
            self._loop.call_soon(self._hand_over)
        self._came.append(RabbitDelivery(self, payload, header, body))

    def _hand_over(self) -> None:
        """All that came at once. A caller's bug is the loop's to report, and nobody else's end."""
        try:
            while self._came:
                delivery = self._came.popleft()
                if self.consumer.stopped:
                    delivery.give_back()
                elif delivery.live or self.consumer.prefetch is None:
                    self.consumer.on_delivery(delivery)
        finally:
            if self._came:
                self._loop.call_soon(self._hand_over)

    def settle(self, tag: int, *, done: bool) -> None:
        """Forget it, and tell the broker at the end of this turn."""
        if self.unsettled.pop(tag, None) is None:
            return  # settled already, or the broker took it back
        (self._acked if done else self._given_back).append(tag)
        self._wire.mark(self)

    def collect(self) -> bytes:
        """This turn's settlements: what came back first, then one ack for a run from the start."""
        if self.died is not None:
            return b""
        said = [
            frames.give_back(self.number, tag) for tag in sorted(self._given_back, reverse=True)
        ]
        oldest = next(iter(self.unsettled), None)
        run = [t for t in self._acked if oldest is None or t < oldest]
        if run:
            said.append(frames.ack(self.number, max(run), multiple=True))
        said += [
            frames.ack(self.number, t) for t in self._acked if oldest is not None and t > oldest
        ]
        self._acked, self._given_back = [], []
        if not self.consuming:
            self._loop.call_soon(self._close_when_empty)
        return b"".join(said)

    def on_cancelled(self) -> None:
        """Its queue was deleted: what is in hand can still be settled, nothing more comes."""
        self.consuming = False
        self._close_when_empty()

    def on_died(self, why: ChannelDied) -> None:
        self.consuming = False
        self.unsettled.clear()

    def _close_when_empty(self) -> None:
        if not self.consuming and not self.unsettled and not self._acked:
            self.close()
