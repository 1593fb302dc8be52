"""One connection to Redis: commands out, replies in the same order, nothing else.

All commands of one turn of the event loop leave in one write. redis-py knows addresses, TLS and
what a URL may say; its connections cost some 100 us a command, though, where hiredis alone,
which packs and parses for it too, needs a tenth (docs/performance.md).
"""

import asyncio
import contextlib
import ssl
from collections import deque
from collections.abc import Mapping
from typing import Any, Final, cast

import hiredis
from redis.asyncio.connection import SSLConnection, parse_url
from redis.exceptions import RedisError

#: A connection that owes an answer and says nothing for this long is given up.
SILENCE_S: Final = 5.0
_NOTHING: Final = object()
_SSL_OPTIONS: Final = "ssl_"


class Refusal(Exception):
    """Redis answered with an error; `code` is its first word."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.code = text.partition(" ")[0]


class LinkLost(Exception):
    """The connection is gone, and nobody knows which of the last commands were done."""


class Link(asyncio.Protocol):
    """An open connection. `send` pipelines; a lost one stays lost."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._reader = hiredis.Reader(
            protocolError=LinkLost, replyError=Refusal, notEnoughData=_NOTHING
        )
        self._out: list[bytes] = []
        self._owed: deque[asyncio.Future[Any]] = deque()
        self._heard_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self.lost: LinkLost | None = None
        """Why a new one is needed, if so."""

    def send(self, command: tuple[Any, ...]) -> asyncio.Future[Any]:
        """The reply to come. Raises LinkLost; the future may get LinkLost or Refusal."""
        if self.lost is not None:
            raise self.lost
        packed = hiredis.pack_command(command)
        future: asyncio.Future[Any] = self._loop.create_future()
        if not self._owed:
            self._heard_at = self._loop.time()
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(packed)
        self._owed.append(future)
        return future

    def close(self) -> None:
        """Let go; what is owed gets LinkLost."""
        if self._transport is not None:
            self._transport.abort()
        self._lose(LinkLost("the connection was closed"))

    def _flush(self) -> None:
        if self.lost is not None or self._transport is None:
            return
        if self._timer is None:
            self._timer = self._loop.call_later(SILENCE_S, self._look)
        self._transport.write(b"".join(self._out))
        self._out.clear()

    def _look(self) -> None:
        """Once per silence while anything is owed, rather than a timer per command."""
        self._timer = None
        if not self._owed:
            return
        left_s = self._heard_at + SILENCE_S - self._loop.time()
        if left_s <= 0:
            self._lose(LinkLost(f"no answer within {SILENCE_S:g} s"))
        else:
            self._timer = self._loop.call_later(left_s, self._look)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass of it

    def data_received(self, data: bytes) -> None:
        self._heard_at = self._loop.time()
        self._reader.feed(data)
        try:
            while (reply := self._reader.gets()) is not _NOTHING:
                self._answer(reply)
        except (LinkLost, IndexError):  # no RESP, or more answers than questions
            self._lose(LinkLost("what answers there is no Redis"))

    def _answer(self, reply: Any) -> None:
        future = self._owed.popleft()
        if future.done():  # whoever asked was cancelled
            return
        if isinstance(reply, Refusal):
            future.set_exception(reply)
        else:
            future.set_result(reply)

    def eof_received(self) -> None:
        self._lose(LinkLost("Redis closed the connection"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._lose(LinkLost(f"connection lost: {exc}" if exc else "connection lost"))

    def _lose(self, why: LinkLost) -> None:
        if self.lost is not None:
            return
        self.lost = why
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            self._transport.abort()
        for future in self._owed:
            if not future.done():
                future.set_exception(LinkLost(*why.args))
        self._owed.clear()


class Address:
    """Where a Redis is, from a URL as redis-py reads it: redis://, rediss:// or unix://."""

    def __init__(self, url: str) -> None:
        """Raises ValueError for what is no such URL."""
        try:
            self._options: Mapping[str, Any] = parse_url(url)
            self._tls = self._tls_context()
        except (RedisError, OSError) as e:  # ssl.SSLError, files that are not there
            raise ValueError(str(e)) from e

    def _tls_context(self) -> ssl.SSLContext | None:
        if self._options.get("connection_class") is not SSLConnection:
            return None
        given = {k: v for k, v in self._options.items() if k.startswith(_SSL_OPTIONS)}
        try:
            return SSLConnection(**given).ssl_context.get()
        except TypeError as e:
            raise ValueError(f"an option of it is unknown: {e}") from e

    async def open(self) -> Link:
        """A connected link. Raises LinkLost, Refusal."""
        link = Link()
        await self.connect(link)
        return link

    async def connect(self, link: Link) -> None:
        """Connect it, authenticate, choose the database. Raises LinkLost, Refusal."""
        try:
            async with asyncio.timeout(SILENCE_S):
                await self._reach(link)
                await self._greet(link)
        except (OSError, TimeoutError) as e:
            link.close()
            raise LinkLost(str(e) or f"no answer within {SILENCE_S:g} s") from e
        except BaseException:
            link.close()
            raise

    async def _reach(self, link: Link) -> None:
        loop, options = asyncio.get_running_loop(), self._options
        if "path" in options:
            await loop.create_unix_connection(lambda: link, options["path"])
            return
        host, port = options.get("host", "localhost"), options.get("port", 6379)
        await loop.create_connection(lambda: link, host, port, ssl=self._tls)

    async def _greet(self, link: Link) -> None:
        user, password = self._options.get("username"), self._options.get("password")
        if password:
            await link.send(("AUTH", user, password) if user else ("AUTH", password))
        if database := self._options.get("db"):
            await link.send(("SELECT", database))
        with contextlib.suppress(Refusal):  # a user who may not is still welcome
            await link.send(("CLIENT", "SETNAME", "warren"))


__all__ = ["SILENCE_S", "Address", "Link", "LinkLost", "Refusal"]
