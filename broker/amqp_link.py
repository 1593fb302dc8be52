"""One connection to RabbitMQ: aio-pika opens it and keeps it alive, our channels share its socket.

aio-pika's connection does the handshake, the login and the heartbeats. It costs a task and several
objects for each message, and its recovery has gaps (queues.md, section 8), so messages don't pass
through it: `Wire` hands the frames of our channels straight to them and writes what they send in
one flush per turn of the loop. The upper half of the channel numbers is ours, the lower aio-pika's.
"""

import asyncio
import ssl
from collections.abc import Callable
from typing import Any, Final, Protocol, cast

import aio_pika
from pamqp import commands, frame, heartbeat
from yarl import URL

from broker.amqp_frames import (
    CONNECTION_BLOCKED,
    CONNECTION_UNBLOCKED,
    FRAME_OVERHEAD,
    METHOD,
    frame_head,
    method_of,
)
from broker.deadlines import within

CONNECT_S: Final = 10.0
CLOSE_S: Final = 0.4
#: What may wait in our buffers before publishers have to.
HIGH_WATER_BYTES: Final = 1 << 20

_HEARTBEAT: Final = frame.marshal(heartbeat.Heartbeat(), 0)
_CLOSE_OK: Final = frame.marshal(commands.Connection.CloseOk(), 0)


class FrameTaker(Protocol):
    """A channel, as the wire sees it."""

    def on_frame(self, type_: int, payload: bytes) -> None: ...
    def on_lost(self) -> None: ...
    def collect(self) -> bytes:
        """What it has to say now (settlements), for this turn's flush."""
        ...


class Wire(asyncio.StreamReaderProtocol):
    """The socket: splits what comes into frames, gathers what goes into one write per turn."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.reader = asyncio.StreamReader(loop=self._loop)
        super().__init__(self.reader, loop=self._loop)
        self.channels: dict[int, FrameTaker] = {}
        self.ours = 1 << 16
        """From this channel number on, frames are ours."""
        self.lost = False
        self.blocked = False
        """The broker has an alarm and takes no publishes."""
        self.on_change: Callable[[], None] = lambda: None
        """Called when the wire is lost, blocked or unblocked, or has room again."""
        self.heard_at = self._loop.time()
        self.transport: asyncio.Transport
        self._rest = b""
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._dirty: dict[FrameTaker, None] = {}
        self._flushing = False
        self._paused = False

    @property
    def full(self) -> bool:
        """Whether more publishes should wait."""
        return self._paused or self._out_bytes > HIGH_WATER_BYTES

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none, but acts as one
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        self.heard_at = self._loop.time()
        buffer = self._rest + data if self._rest else data
        at, size = 0, len(buffer)
        while size - at >= FRAME_OVERHEAD:
            type_, number, length = frame_head(buffer, at)
            end = at + FRAME_OVERHEAD + length
            if end > size:
                break
            channel = self.channels.get(number)
            if channel is not None:
                channel.on_frame(type_, buffer[at + 7 : end - 1])
            elif number < self.ours:  # else it was for a channel that we have closed
                self._to_driver(type_, number, buffer[at:end])
            at = end
        self._rest = buffer[at:] if at else buffer

    def _to_driver(self, type_: int, number: int, whole: bytes) -> None:
        if number == 0 and type_ == METHOD:
            self._watch(method_of(whole[7:11]))
        super().data_received(whole)

    def _watch(self, method: int) -> None:
        if method in {CONNECTION_BLOCKED, CONNECTION_UNBLOCKED}:
            self.blocked = method == CONNECTION_BLOCKED
            self.on_change()

    def feed_heartbeat(self) -> None:
        """The broker sends no heartbeats while it sends messages, which aio-pika does not see."""
        if not self.lost:
            super().data_received(_HEARTBEAT)

    def write(self, pieces: list[bytes]) -> None:
        """Send whole frames with this turn's flush."""
        self._out += pieces
        self._out_bytes += sum(map(len, pieces))
        self._flush_soon()

    def mark(self, channel: FrameTaker) -> None:
        """Ask the channel what it has to say when this turn is flushed."""
        self._dirty[channel] = None
        self._flush_soon()

    def _flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Send everything now."""
        self._flushing = False
        dirty, self._dirty = self._dirty, {}
        self._out += [channel.collect() for channel in dirty]
        out, self._out, self._out_bytes = self._out, [], 0
        if out and not self.lost and not self.transport.is_closing():
            self.transport.write(b"".join(out))

    def pause_writing(self) -> None:
        super().pause_writing()
        self._paused = True

    def resume_writing(self) -> None:
        super().resume_writing()
        self._paused = False
        self.on_change()

    def eof_received(self) -> bool:
        return False  # the transport closes itself, and connection_lost follows

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self._paused = False
        super().data_received(_CLOSE_OK)  # so that aio-pika's reader ends without a traceback
        super().connection_lost(None)
        channels, self.channels = self.channels, {}
        for channel in channels.values():
            channel.on_lost()
        self.on_change()

    def abort(self) -> None:
        """Cut it."""
        self.transport.abort()


class Link:
    """An open connection."""

    def __init__(self, wire: Wire, connection: aio_pika.Connection, heartbeat_s: int) -> None:
        self.wire = wire
        self._connection = connection
        self._heartbeat_s = heartbeat_s
        assert connection.transport is not None
        self._driver: Any = connection.transport.connection
        tune = self._driver.connection_tune
        self.frame_max = int(tune.frame_max or 131_072)
        self._last = int(tune.channel_max or 65_535)
        wire.ours = self._last // 2 + 1

    @property
    def channels_left(self) -> int:
        """How many more `new_channel` can give."""
        return self._last - self.wire.ours + 1 - len(self.wire.channels)

    def new_channel(self, channel: FrameTaker) -> int:
        """A channel number of our own. Raises OSError when the link is lost or has none left."""
        if self.wire.lost:
            raise ConnectionResetError("the connection is lost")
        for number in range(self._last, self.wire.ours - 1, -1):
            if number not in self.wire.channels:
                self.wire.channels[number] = channel
                return number
        raise OSError("no AMQP channel is left on this connection")

    def watch(self) -> None:
        """Call this about twice a second: finds out that the other side is silent."""
        silent_s = asyncio.get_running_loop().time() - self.wire.heard_at
        if silent_s > 2 * self._heartbeat_s:
            self.wire.abort()
        elif silent_s < 1.0:
            self.wire.feed_heartbeat()

    async def close(self) -> None:
        """Say goodbye if the other side listens, then cut. Returns within a second."""
        try:
            if not self.wire.lost:
                self.wire.flush()
            with within(CLOSE_S):
                await self._connection.close()
        except TimeoutError:
            pass
        finally:
            self.wire.abort()
        left = {t for t in (self._driver._reader_task, self._driver._writer_task) if not t.done()}
        if left:
            await asyncio.wait(left, timeout=CLOSE_S)


async def open_link(url: URL, name: str, heartbeat_s: int) -> Link:
    """Connect and log in. Raises OSError, TimeoutError or aio_pika.exceptions.AMQPError."""
    async with asyncio.timeout(CONNECT_S):
        wire = await _open_wire(url)
        asked = url.update_query(heartbeat=str(heartbeat_s), name=name)
        connection = aio_pika.Connection(asked)
        connection.kwargs["transport_factory"] = _Opened(wire)
        try:
            await connection.connect()
            return Link(wire, connection, heartbeat_s)
        except BaseException as e:
            closed = wire.lost or wire.transport.is_closing()
            wire.abort()
            if isinstance(e, RuntimeError) and closed:  # how uvloop says it, where asyncio is mute
                raise ConnectionResetError("the connection was lost before the login") from e
            task = asyncio.current_task()
            if isinstance(e, asyncio.CancelledError) and task and not task.cancelling():
                # the driver cancels its own futures when the socket dies: nobody cancelled us
                raise ConnectionResetError("the connection was lost during the login") from e
            raise


class _Opened:
    """aiormq's TransportFactory for a socket that is open already."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    async def create(self, url: URL, **_: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        wire = self._wire
        loop = asyncio.get_running_loop()
        return wire.reader, asyncio.StreamWriter(wire.transport, wire, wire.reader, loop)


async def _open_wire(url: URL) -> Wire:
    secure = url.scheme == "amqps"
    _, wire = await asyncio.get_running_loop().create_connection(
        Wire,
        url.host or "localhost",
        url.port or (5671 if secure else 5672),
        ssl=_tls(url) if secure else None,
    )
    return wire


def _tls(url: URL) -> ssl.SSLContext:
    """Certificates are always checked; `?cafile=&certfile=&keyfile=` name files in PEM."""
    context = ssl.create_default_context(cafile=url.query.get("cafile"))
    if "certfile" in url.query:
        context.load_cert_chain(url.query["certfile"], url.query.get("keyfile"))
    return context
