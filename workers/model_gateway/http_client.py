"""An HTTP/1.1 client for one server: connections kept, as many as there are requests.

No proxies, no redirects, no cookies: what a model server of one's own never needs costs nothing
here. Time out around requests; a request that is cancelled takes its connection along.
"""

import asyncio
import collections
import contextlib
import functools
import socket
import ssl
import time
from collections.abc import Callable
from typing import Final, TypeVar, cast
from urllib.parse import urlsplit

import aiohappyeyeballs

from broker.errors import UsageError
from broker.masking import Secret, mask_url
from workers.model_gateway.config import basic_auth
from workers.model_gateway.http import CONNECT_S, KEEPALIVE_S
from workers.model_gateway.http_connection import Answer, Broken, Connection, Unheard, reading_place

_RESOLVE_EVERY_S: Final = 60.0
#: How long an address gets before the next one is tried beside it (RFC 8305).
_NEXT_ADDRESS_S: Final = 0.25

T = TypeVar("T")
Address = tuple[int, int, int, str, tuple[str, int] | tuple[str, int, int, int]]


class HttpClient:
    """Asks the server of one URL. Open it on the event loop; close it."""

    def __init__(self, url: str, key: Secret | None = None, *, keeps: bool = True) -> None:
        """Authorised by `key` as a bearer token, else by the user and password in `url`.

        `keeps`: whether connections are used again, which the server may end at any moment: what
        one ended under, unheard, is sent once more. Else nothing is ever sent twice.
        """
        parts = urlsplit(url)
        if not parts.hostname or parts.scheme not in ("http", "https"):
            where = mask_url(url)
            raise UsageError(f"base URL {where!r} must begin with http:// or https:// and a host")
        self._host = parts.hostname
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._port = parts.port or (443 if self._tls else 80)
        self._fixed_head = _fixed_head(url, key)
        self._idle: collections.deque[Connection] = collections.deque()
        self._open: set[Connection] = set()
        self._addresses: collections.deque[Address] = collections.deque()
        self._resolved_at = float("-inf")
        self._resolving = asyncio.Lock()
        self._sweep: asyncio.TimerHandle | None = None
        self._keeps = keeps
        self._reading = reading_place()
        self.resent = 0
        """Requests sent twice, since the server had just closed their connection."""

    async def request(self, method: str, path: str, body: bytes = b"") -> Answer:
        """The whole answer, whatever its status (`ask`)."""
        return await self.ask(method, path, body, _whole)

    async def ask(self, method: str, path: str, body: bytes, read: Callable[[Answer], T]) -> T:
        """What `read` makes of the whole answer, whatever its status (Connection.ask).

        Raises ConnectionError, Retryable for an answer above MAX_ANSWER_BYTES, what `read` raises.
        """
        request = b"%b%b%d\r\n\r\n%b" % (
            _first_line(method, path),
            self._fixed_head,
            len(body),
            body,
        )
        connection = self._kept()
        if connection is not None:
            try:
                return await self._ask(connection, request, read)
            except Unheard:
                self.resent += 1
        return await self._ask(await self._connect(), request, read)

    async def close(self) -> None:
        """Close all connections; requests that run fail."""
        if self._sweep is not None:
            self._sweep.cancel()
        lost = [connection.lost for connection in self._open]
        for connection in self._open:
            connection.abort()
        if lost:
            await asyncio.wait(lost, timeout=1.0)

    async def _ask(self, connection: Connection, request: bytes, read: Callable[[Answer], T]) -> T:
        try:
            return await connection.ask(request, read)
        finally:
            if self._keeps and connection.idle:  # the answer was whole, whatever its reader found
                self._keep(connection)
            else:
                connection.abort()

    def _kept(self) -> Connection | None:
        """The connection that was used last: the others may end."""
        while self._idle:
            connection = self._idle.pop()
            if connection.idle:
                return connection
        return None

    def _keep(self, connection: Connection) -> None:
        self._idle.append(connection)
        if self._sweep is None:
            loop = asyncio.get_running_loop()
            self._sweep = loop.call_later(KEEPALIVE_S, self._close_old)

    def _close_old(self) -> None:
        oldest = time.monotonic() - KEEPALIVE_S
        while self._idle and self._idle[0].idle_since <= oldest:
            self._idle.popleft().abort()
        self._sweep = None
        if self._idle:
            loop = asyncio.get_running_loop()
            self._sweep = loop.call_later(KEEPALIVE_S / 2, self._close_old)

    async def _connect(self) -> Connection:
        try:
            async with asyncio.timeout(CONNECT_S):
                return await self._connected()
        except TimeoutError:
            raise Broken(f"no connection within {CONNECT_S:g} s") from None
        except OSError as e:  # refused, no such host, TLS
            raise Broken(f"{type(e).__name__}: {e}") from e

    async def _connected(self) -> Connection:
        loop = asyncio.get_running_loop()
        addresses = await self._resolved()
        free: socket.socket | None = await aiohappyeyeballs.start_connection(
            addresses, happy_eyeballs_delay=_NEXT_ADDRESS_S, interleave=1
        )
        try:
            _, connection = await loop.create_connection(
                functools.partial(Connection, loop, self._reading),
                sock=free,
                ssl=self._tls,
                server_hostname=self._host if self._tls else None,
            )
            free = None
        finally:
            if free is not None:  # the loop did not take it
                with contextlib.suppress(OSError):
                    free.close()
        self._open.add(connection)
        connection.lost.add_done_callback(lambda _: self._open.discard(connection))
        return connection

    async def _resolved(self) -> list[Address]:
        """The server's addresses, each connection beginning with another one."""
        async with self._resolving:
            if time.monotonic() - self._resolved_at > _RESOLVE_EVERY_S:
                loop = asyncio.get_running_loop()
                found = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
                self._addresses = collections.deque(cast("list[Address]", found))
                self._resolved_at = time.monotonic()
        addresses = list(self._addresses)
        self._addresses.rotate(-1)
        return addresses


def _whole(answer: Answer) -> Answer:
    return answer


@functools.lru_cache(maxsize=64)
def _first_line(method: str, path: str) -> bytes:
    return f"{method} {path} HTTP/1.1\r\n".encode("ascii")


def _fixed_head(url: str, key: Secret | None) -> bytes:
    """The headers of every request, up to the value of the last one."""
    parts = urlsplit(url)
    headers = {
        "host": parts.netloc.rpartition("@")[2],
        "user-agent": "warren",
        "accept": "application/json",
        "accept-encoding": "identity",
        "content-type": "application/json",
    }
    if key is not None:
        headers["authorization"] = f"Bearer {key.reveal()}"
    elif (user := basic_auth(url)) is not None:
        headers["authorization"] = f"Basic {user.reveal()}"
    for name, value in headers.items():
        if not value.isascii() or not value.isprintable():
            what = "API key" if name == "authorization" else name
            raise UsageError(f"the {what} of a model has characters that HTTP forbids")
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"{lines}content-length: ".encode("ascii")
