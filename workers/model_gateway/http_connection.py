"""One HTTP/1.1 connection: a request at a time, its whole answer at once, within a size.

llhttp's parser in C reads what comes: with chunks, 1xx, garbage. aiohttp does the same for three
to five times the CPU. What is left of a body of known length once its beginning is there, the
kernel writes into its place: half a megabyte with tokens would be copied three times otherwise.
Nobody times out here: cut a request by cancelling it and aborting.
"""

import asyncio
import time
import zlib
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, TypeVar, cast

import httptools

from workers.model_gateway.http import MAX_ANSWER_BYTES, RACE_S, Body, too_large

#: What a peer may send before the body begins.
_MAX_HEAD_BYTES: Final = 64 * 1024
#: Of everything that comes for one answer: chunks of one byte cost six.
_MAX_RAW_BYTES: Final = 8 * MAX_ANSWER_BYTES
#: Most answers without tokens are there with one read of this size.
_READ_BYTES: Final = 32 * 1024
_END_BYTES: Final = 16 * 1024
#: A place is taken as soon as it is asked for: no server shall take much without sending it.
_MAX_PLACE_BYTES: Final = 2 * 1024 * 1024
_NOTHING: Final = memoryview(b"")

T = TypeVar("T")


class Answer(NamedTuple):
    """What came back."""

    status: int
    head: Mapping[bytes, bytes]
    """Headers as they came, names in lower case."""
    body: Body

    @property
    def headers(self) -> dict[str, str]:
        """As text: for errors, since answers need none of them."""
        return {k.decode("latin-1"): v.decode("latin-1") for k, v in self.head.items()}


class Broken(ConnectionError):
    """The connection ended, or spoke no HTTP, before the answer was there."""


class Unheard(Broken):
    """A connection that was used before ended just as the request was sent, without a byte.

    The server had closed it while it was idle, so the request was not read: send it once more.
    """


def reading_place() -> memoryview:
    """Where the connections of a loop read what their parsers take; no two read at once."""
    return memoryview(bytearray(_READ_BYTES))


class Connection(asyncio.BufferedProtocol):
    """A connection that `asyncio` made. `ask` when `idle`; `abort` when an answer is given up."""

    _parts: list[Body]
    _rest: memoryview
    """The place of what is left of the body; empty while the parser reads."""
    _length: int
    """Of the body, where it was said."""
    _body_bytes: int
    _raw_bytes: int

    def __init__(self, loop: asyncio.AbstractEventLoop, reading: memoryview) -> None:
        self._loop = loop
        self._reading = self._place = reading
        self._rest = _NOTHING
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[Any] | None = None
        self._read: Callable[[Answer], Any]
        self._reused = False
        self._reset()
        self.lost = loop.create_future()
        """Done when the connection is closed."""
        self.idle_since = 0.0
        """When the last answer ended, of `time.monotonic`."""

    @property
    def idle(self) -> bool:
        """Whether a request may be sent: open, at peace, and the server keeps it."""
        return self._waiter is None and self._transport is not None

    def ask(self, request: bytes, read: Callable[[Answer], T]) -> asyncio.Future[T]:
        """Send a whole request. `read` makes of its answer what the future has, or raises.

        It is called the moment that the answer is there, before those of other connections come: so
        what was just written to memory is still at hand. The future raises Broken, Unheard, or
        Retryable for an answer that is too large, too.
        """
        assert self._transport is not None
        self._read = read
        self._waiter = self._loop.create_future()
        self._asked_at = time.monotonic()
        self._transport.write(request)
        return self._waiter

    def abort(self) -> None:
        """Close it without ceremony."""
        if self._transport is not None:
            self._transport.abort()
            self._transport = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """(asyncio)"""
        self._transport = cast(asyncio.Transport, transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        """(asyncio)"""
        return self._place

    def buffer_updated(self, nbytes: int) -> None:
        """(asyncio)"""
        if self._waiter is None:  # nobody asked
            return self.abort()
        self._raw_bytes += nbytes
        if self._rest:
            return self._read_in_place(nbytes)
        try:
            self._parser.feed_data(self._reading[:nbytes])
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as e:
            return self._fail(Broken(f"the answer is no HTTP ({e})"))
        if self._waiter is None:  # it has its answer
            return
        if self._body_bytes < self._length <= _MAX_PLACE_BYTES:
            self._place_body()
        elif not self._in_body and self._raw_bytes > _MAX_HEAD_BYTES:
            self._fail(Broken(f"the answer's head is larger than {_MAX_HEAD_BYTES} bytes"))
        elif self._raw_bytes > _MAX_RAW_BYTES:
            self._fail(too_large())

    def connection_lost(self, error: Exception | None) -> None:
        """(asyncio)"""
        self._transport = None
        if self._waiter is not None:
            if self._in_body and self._until_closed and error is None:
                self._deliver()
            else:
                self._fail(self._why_lost(error))
        if not self.lost.done():
            self.lost.set_result(None)

    def _why_lost(self, error: Exception | None) -> Broken:
        if not self._raw_bytes:
            late = time.monotonic() - self._asked_at > RACE_S
            kind = Broken if late or not self._reused else Unheard
            return kind(f"the server closed the connection without an answer{_because(error)}")
        return Broken(f"the answer broke off after {self._raw_bytes} bytes{_because(error)}")

    def on_message_begin(self) -> None:
        """(httptools)"""
        if self._waiter is None:  # more than one answer to one request
            self.abort()

    def on_header(self, name: bytes, value: bytes) -> None:
        """(httptools)"""
        self._head[name.lower()] = value

    def on_headers_complete(self) -> None:
        """(httptools)"""
        self._status = self._parser.get_status_code()
        self._interim = self._status < 200
        if not self._interim:
            length = self._head.get(b"content-length")
            chunked = b"transfer-encoding" in self._head
            self._in_body, self._until_closed = True, length is None and not chunked
            if length is not None and int(length) > MAX_ANSWER_BYTES:
                self._fail(too_large())
            elif length is not None and not chunked:
                self._length = int(length)

    def on_body(self, body: bytes) -> None:
        """(httptools)"""
        self._parts.append(body)
        self._body_bytes += len(body)
        if self._body_bytes > MAX_ANSWER_BYTES:
            self._fail(too_large())

    def on_message_complete(self) -> None:
        """(httptools)"""
        if self._interim:
            self._head.clear()
        elif self._waiter is not None:
            keep = self._parser.should_keep_alive()
            self._deliver()
            if not keep:
                self.abort()

    def _place_body(self) -> None:
        """Have the rest of the body read into its place, past the parser."""
        body = bytearray(self._length)
        body[: self._body_bytes] = b"".join(self._parts)
        self._parts = [body]
        self._read_into(memoryview(body)[self._body_bytes :])

    def _read_into(self, rest: memoryview) -> None:
        """The end is read apart, as heads are: what comes behind it unasked must be seen."""
        self._rest = rest
        self._place = rest[:-_END_BYTES] if len(rest) > _END_BYTES else self._reading

    def _read_in_place(self, count: int) -> None:
        rest = self._rest
        if len(rest) <= _END_BYTES:
            rest[:count] = self._reading[: min(count, len(rest))]
        if count < len(rest):
            return self._read_into(rest[count:])
        self._rest, self._place = _NOTHING, self._reading
        keep = count <= len(rest) and self._parser.should_keep_alive()
        self._parser = httptools.HttpResponseParser(self)  # the old one waits for the body
        self._deliver()
        if not keep:
            self.abort()

    def _deliver(self) -> None:
        parts, waiter, self._waiter = self._parts, self._waiter, None
        answer = Answer(self._status, self._head, parts[0] if len(parts) == 1 else b"".join(parts))
        self._reset()
        self._reused, self.idle_since = True, time.monotonic()
        if waiter is None or waiter.done():
            return
        try:
            if b"content-encoding" in answer.head:
                answer = _decoded(answer)
            waiter.set_result(self._read(answer))
        except zlib.error as e:
            waiter.set_exception(Broken(f"its body: {e}"))
        except Exception as e:  # whatever its reader finds
            waiter.set_exception(e)

    def _fail(self, error: Exception) -> None:
        waiter, self._waiter = self._waiter, None
        self.abort()
        if waiter is not None and not waiter.done():
            waiter.set_exception(error)

    def _reset(self) -> None:
        self._head: dict[bytes, bytes] = {}
        self._parts = []
        self._status = self._length = self._body_bytes = self._raw_bytes = 0
        self._in_body = self._until_closed = self._interim = False
        self._asked_at = 0.0


def _because(error: Exception | None) -> str:
    return f" ({type(error).__name__}: {error})" if error is not None else ""


def _decoded(answer: Answer) -> Answer:
    """The answer with its body unpacked: some proxies compress what nobody asked them to."""
    encoding = answer.headers["content-encoding"].strip().lower()
    if encoding in ("identity", ""):
        return answer
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise Broken(f"its body is encoded as {encoding!r}, which nobody asked for")
    unpack = zlib.decompressobj(47)  # gzip or zlib, as the header says
    body = unpack.decompress(answer.body, MAX_ANSWER_BYTES)
    if not unpack.eof:
        raise Broken("its compressed body has no end, or is too large")
    return answer._replace(body=body)
