"""The RabbitMQ transport: the promises of `base.py` over connections that come and go.

Two links, so that an alarm that stops publishing never stops consuming and settling:

    publishing   Publisher: pipelined confirms; unconfirmed messages are published again
    consuming    the channels of each consumer, and whatever is declared, asked or deleted

A keeper task per link opens a new one when it is lost, declares what this process declared, and
starts every consumer that is not served: after a reconnect, and where the broker cancelled one.
A publish for which no queue is there any more declares this process's queues again, once.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

from aio_pika.exceptions import AMQPError
from pamqp import base, commands
from yarl import URL

from broker.amqp_address import advice, parse_urls
from broker.amqp_channel import Channel, ChannelDied
from broker.amqp_consumer import Consumer
from broker.amqp_declaring import declarations
from broker.amqp_link import Link, open_link
from broker.amqp_publisher import Publisher
from broker.base import MAX_PREFETCH, OnDelivery, Outgoing, QueueDepth, Sender
from broker.codec import MAX_BODY_BYTES
from broker.deadlines import within
from broker.errors import BrokerClosed, BrokerError, BrokerLost, TooLarge, Unreachable, Unroutable
from broker.topology import QueueSpec

log = logging.getLogger(__name__)

#: How often the keepers look whether all is well when nothing tells them otherwise.
TICK_S: Final = 0.5
FIRST_RETRY_S: Final = 0.1
LAST_RETRY_S: Final = 2.0

T = TypeVar("T")

_EXTERNAL: Final = (
    "; topology = external leaves declaring to others: run the same once with topology = declare, "
    "as a user who may"
)


class RabbitBroker:
    """A process's connections to RabbitMQ (base.Broker). Make one with `connect`."""

    def __init__(
        self,
        urls: Sequence[URL],
        patience_s: float,
        outage_s: float,
        heartbeat_s: int,
        declares: bool,
    ) -> None:
        self.reconnects = 0
        self._declares = declares
        self._urls = urls
        self._patience_s = patience_s
        self._outage_s = outage_s
        self._heartbeat_s = heartbeat_s
        self._publisher = Publisher(patience_s, outage_s)
        self._publishing: Link | None = None
        self._consuming: Link | None = None
        self._declared: dict[str, QueueSpec] = {}
        self._declaring = asyncio.Lock()
        self._declared_at = 0.0
        self._consumers: dict[Consumer, None] = {}
        self._ready = asyncio.Event()
        """The consuming link is up and everything is declared."""
        self._changed = asyncio.Event()
        self._closed = False
        self._keeper: asyncio.Task[None] | None = None

    @classmethod
    async def connect(
        cls,
        url: str,
        *,
        patience_s: float = 30.0,
        outage_s: float = 600.0,
        heartbeat_s: int = 15,
        declares: bool = True,
    ) -> "RabbitBroker":
        """Connect to the first host that answers of `amqp://user:password@host:port/vhost`.

        Several URLs, or hosts of one URL, are separated by commas. `amqps` checks certificates;
        `?cafile=...&certfile=...&keyfile=...` name PEM files.

        `patience_s`: how long a publish waits for its confirmation while the broker is there.
        `outage_s`: how long the broker may be away. `heartbeat_s`: a peer silent for twice as long
        is given up. `declares`: whether queues that processes share are declared, or have to be
        there (a user without the right to configure them).

        Raises: Unreachable.
        """
        broker = cls(parse_urls(url), patience_s, outage_s, heartbeat_s, declares)
        try:
            broker._consuming = await broker._open("consume")
            broker._publishing = await broker._open("publish")
        except (OSError, AMQPError) as e:
            await broker.close()
            raise Unreachable(advice(url, e)) from e
        except BaseException:
            await broker.close()
            raise
        broker._ready.set()
        broker._publisher.use(broker._publishing)
        broker._keeper = asyncio.create_task(broker._keep(), name="rabbitmq keeper")
        broker._keeper.add_done_callback(broker._on_keeper_done)
        return broker

    @property
    def connected(self) -> bool:
        publishing = self._publishing
        return (
            self._ready.is_set()
            and publishing is not None
            and not publishing.wire.lost
            and not publishing.wire.blocked
        )

    async def declare(self, queues: Sequence[QueueSpec]) -> None:
        self._check_open()
        requests = declarations(queues, self._declares)
        try:
            await self._ask(*requests)
        except ChannelDied as e:
            hint = "" if self._declares else _EXTERNAL
            raise BrokerError(
                f"cannot declare {', '.join(q.name for q in queues)}: {e}{hint}"
            ) from e
        self._declared.update({queue.name: queue for queue in queues})

    async def publish(self, message: Outgoing) -> None:
        self._check_open()
        if len(message.body) > MAX_BODY_BYTES:
            raise _too_large(message)
        try:
            await self._publisher.publish(message)
        except Unroutable:  # somebody has taken a queue or its binding away
            if not await self._declare_ways(message):
                raise
            await self._publisher.publish(message)

    async def _declare_ways(self, message: Outgoing) -> bool:
        """Declare again the queues of ours that would take it; whether there are any.

        Once for all that found no way at the same time.
        """
        ways = [
            queue
            for queue in self._declared.values()
            if any(binding.takes(message.exchange, message.key) for binding in queue.bindings)
        ]
        if not ways or not self._declares:
            return False
        found_at = time.monotonic()
        async with self._declaring:
            if self._declared_at < found_at:
                log.warning("no queue takes a message: declaring again", extra={"key": message.key})
                await self.declare(list(self._declared.values()))
                self._declared_at = time.monotonic()
        return True

    def post(self, message: Outgoing, sender: Sender) -> None:
        if len(message.body) > MAX_BODY_BYTES:
            sender.on_end(_too_large(message))
        else:
            self._publisher.post(message, sender)

    def publish_hint(self, message: Outgoing) -> None:
        if not self._closed and len(message.body) <= MAX_BODY_BYTES:
            self._publisher.hint(message)

    @asynccontextmanager
    async def consume(
        self, queue: str, prefetch: int | None, on_delivery: OnDelivery
    ) -> AsyncGenerator[None]:
        self._check_open()
        if prefetch is not None and not 1 <= prefetch <= MAX_PREFETCH:
            raise ValueError(f"prefetch must be between 1 and {MAX_PREFETCH}, not {prefetch}")
        consumer = Consumer(queue, prefetch, on_delivery)
        try:
            await self._on_link(consumer.start, f"begin to send from {queue}")
        except ChannelDied as e:
            raise BrokerError(f"cannot consume {queue}: {e}") from e
        self._consumers[consumer] = None
        try:
            yield
        finally:
            consumer.stop()
            del self._consumers[consumer]

    async def depth(self, queue: str) -> QueueDepth | None:
        self._check_open()
        request = commands.Queue.Declare(queue=queue, passive=True)
        try:
            (answer,) = await self._ask(request)
        except ChannelDied as e:
            if e.code == 404:
                return None
            raise BrokerError(f"cannot ask how {queue} stands: {e}") from e
        return QueueDepth(int(answer.message_count), int(answer.consumer_count))

    async def delete(self, queue: str) -> None:
        self._check_open()
        self._declared.pop(queue, None)
        try:
            await self._ask(commands.Queue.Delete(queue=queue))
        except ChannelDied as e:
            raise BrokerError(f"cannot delete {queue}: {e}") from e

    async def close(self) -> None:
        self._closed = True
        for consumer in self._consumers:
            consumer.stopped = True
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        links = [link for link in (self._publishing, self._consuming) if link is not None]
        async with asyncio.TaskGroup() as group:
            for link in links:
                group.create_task(link.close())
        self._publisher.close()

    def break_connection(self) -> None:
        """Cut both sockets, as a broken cable does; the keepers then connect again. For tests."""
        for link in (self._publishing, self._consuming):
            if link is not None:
                link.wire.abort()

    def _check_open(self) -> None:
        if self._closed:
            raise BrokerClosed("this connection to RabbitMQ was closed")

    async def _ask(self, *requests: base.Frame) -> Sequence[Any]:
        return await self._on_link(lambda link: _ask_on(link, requests), "answer")

    async def _on_link(self, act: Callable[[Link], Awaitable[T]], wanted: str) -> T:
        """Do what the broker is wanted for on the consuming link, again after a loss. Raises
        BrokerLost, and ChannelDied where the broker said no."""
        while True:
            link = await self._link_when_up()
            try:
                with within(self._patience_s):
                    return await act(link)
            except TimeoutError as e:
                raise BrokerLost(f"RabbitMQ did not {wanted} within {self._patience_s:g} s") from e
            except ChannelDied as e:
                if e.code:
                    raise
                await asyncio.sleep(FIRST_RETRY_S)

    async def _link_when_up(self) -> Link:
        """The consuming link. Raises BrokerLost where none comes up in time."""
        try:
            with within(self._outage_s):
                await self._ready.wait()
        except TimeoutError as e:
            raise BrokerLost(f"RabbitMQ has been away for {self._outage_s:g} s") from e
        assert self._consuming is not None
        return self._consuming

    async def _keep(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_consuming())
            group.create_task(self._keep_publishing())
            group.create_task(self._watch())

    async def _keep_consuming(self) -> None:
        while True:
            link = self._consuming
            if link is None or link.wire.lost:
                link = self._consuming = await self._reopen("consume", link)
            try:
                await self._restore(link)
            except ChannelDied as e:
                log.warning("cannot restore consumers yet", extra={"error": str(e)})
            await self._news()

    async def _keep_publishing(self) -> None:
        while True:
            link = self._publishing
            if link is None or link.wire.lost:
                link = await self._reopen("publish", link)
                await self._ready.wait()  # a broker that lost its queues would return everything
                self._publishing = link
                self._publisher.use(link)
            await self._news()

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        before = loop.time()
        while True:
            await asyncio.sleep(TICK_S)
            now = loop.time()
            self._publisher.tick(now - before)
            before = now
            for link in (self._publishing, self._consuming):
                if link is not None:
                    link.watch()

    async def _restore(self, link: Link) -> None:
        """Declare and consume what this process wants, where that is not so. Raises ChannelDied."""
        if not self._ready.is_set():
            await self._declare_again(link, self._declared.values())
            self._ready.set()
        for consumer in [c for c in self._consumers if not c.served]:
            spec = self._declared.get(consumer.queue)
            await self._declare_again(link, [] if spec is None else [spec])
            if not consumer.stopped:
                log.warning("consuming again", extra={"queue": consumer.queue})
                await consumer.start(link)

    async def _declare_again(self, link: Link, queues: Iterable[QueueSpec]) -> None:
        try:
            await _ask_on(link, declarations(queues, self._declares))
        except ChannelDied as e:
            if not e.code:
                raise
            log.error("a queue is not as this process declared it", extra={"error": str(e)})

    async def _news(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TICK_S):
                await self._changed.wait()
        self._changed.clear()

    def _on_change(self) -> None:
        if self._consuming is not None and self._consuming.wire.lost:
            self._ready.clear()
        self._changed.set()
        self._publisher.pump()

    def _on_keeper_done(self, keeper: asyncio.Task[None]) -> None:
        if not keeper.cancelled() and (error := keeper.exception()) is not None:
            log.critical("the broker's keeper failed", exc_info=error)
            self._closed = True
            self._publisher.close()

    async def _reopen(self, role: str, lost: Link | None) -> Link:
        if lost is not None:
            await lost.close()
        delay_s = FIRST_RETRY_S
        while True:
            try:
                link = await self._open(role)
            except (OSError, AMQPError) as e:
                log.warning("cannot reconnect yet", extra={"role": role, "error": str(e)})
                await asyncio.sleep(random.uniform(0.5, 1.0) * delay_s)
                delay_s = min(delay_s * 2, LAST_RETRY_S)
            else:
                self.reconnects += 1
                log.warning("reconnected", extra={"role": role})
                return link

    async def _open(self, role: str) -> Link:
        """Connect to the first host that answers, any first. Raises the last one's error."""
        error: OSError | AMQPError = ConnectionError("no host is named")
        for url in random.sample(self._urls, len(self._urls)):
            try:
                link = await open_link(url, f"warren {role}", self._heartbeat_s)
            except (OSError, AMQPError) as e:
                error = e
            else:
                link.wire.on_change = self._on_change
                return link
        raise error


def _too_large(message: Outgoing) -> TooLarge:
    return TooLarge(f"{len(message.body)} bytes, at most {MAX_BODY_BYTES} can be sent")


async def _ask_on(link: Link, requests: Sequence[base.Frame]) -> Sequence[Any]:
    """Ask on a channel of its own: an error closes the channel of all who share it."""
    channel = Channel(link)
    try:
        return await channel.ask(*requests)
    finally:
        channel.close()
