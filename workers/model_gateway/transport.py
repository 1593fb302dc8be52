"""HTTP for the `openai` SDK over aiohttp.

httpx's own connection pool looks at every connection for every request: with 1,000 in flight that
is 10 ms of CPU for each. aiohttp's costs the same however many there are.
"""

import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Final

import aiohttp
import httpx2

from workers.model_gateway.http import CONNECT_S, KEEPALIVE_S, RACE_S, environment_proxy

_CHUNK_BYTES: Final = 64 * 1024
#: Hop-by-hop or recomputed by aiohttp.
_NOT_SENT: Final = frozenset({"connection", "content-length", "transfer-encoding"})
#: aiohttp has undone these.
_NOT_TRUE_ANY_MORE: Final = frozenset({"content-encoding", "content-length", "transfer-encoding"})


class AiohttpTransport(httpx2.AsyncBaseTransport):
    """Sends requests through a session of its own, opened with the first one."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None
        self.resent = 0
        """Requests sent twice, since the server had just closed their kept connection."""

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send; the answer's body is read as the caller asks for it."""
        if self._session is None:
            self._session = _new_session(environment_proxy(str(request.url)))
        await request.aread()  # of a redirected one, nobody has yet
        with _typed(request):
            sent = _Sent()
            try:
                answer = await self._send(self._session, request, sent)
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as e:
                if not sent.unheard(e):
                    raise
                self.resent += 1
                answer = await self._send(self._session, request, _Sent())
        return httpx2.Response(
            answer.status,
            headers=[
                (k, v) for k, v in answer.headers.items() if k.lower() not in _NOT_TRUE_ANY_MORE
            ],
            stream=_Body(request, answer),
            request=request,
        )

    @staticmethod
    async def _send(
        session: aiohttp.ClientSession, request: httpx2.Request, sent: "_Sent"
    ) -> aiohttp.ClientResponse:
        read_s = request.extensions.get("timeout", {}).get("read")
        return await session.request(
            request.method,
            str(request.url),
            headers=[(k, v) for k, v in request.headers.items() if k not in _NOT_SENT],
            data=request.content,
            timeout=aiohttp.ClientTimeout(connect=CONNECT_S, sock_read=read_s),
            allow_redirects=False,
            trace_request_ctx=sent,
        )

    async def aclose(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()


def _new_session(proxy: str | None) -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S, ttl_dns_cache=60)
    timeout = aiohttp.ClientTimeout(total=None, connect=CONNECT_S)
    trace = aiohttp.TraceConfig()
    trace.on_connection_reuseconn.append(_reused)
    return aiohttp.ClientSession(
        connector=connector, timeout=timeout, proxy=proxy, trace_configs=[trace]
    )


@dataclass(slots=True)
class _Sent:
    """What is known of a request on its way."""

    reused_at: float | None = None
    """Since when it has a connection that was used before, in monotonic seconds."""

    def unheard(self, error: Exception) -> bool:
        """Whether the server had closed the connection before it could read the request."""
        began = isinstance(getattr(error, "message", None), aiohttp.http.RawResponseMessage)
        return (
            not began and self.reused_at is not None and time.monotonic() - self.reused_at < RACE_S
        )


async def _reused(_: aiohttp.ClientSession, context: SimpleNamespace, __: object) -> None:
    sent: _Sent = context.trace_request_ctx
    sent.reused_at = time.monotonic()


class _Body(httpx2.AsyncByteStream):
    def __init__(self, request: httpx2.Request, answer: aiohttp.ClientResponse) -> None:
        self._request = request
        self._answer = answer

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _typed(self._request):
            async for chunk in self._answer.content.iter_chunked(_CHUNK_BYTES):
                yield chunk

    async def aclose(self) -> None:
        """Give the connection back where it was read to its end, else close it."""
        if self._answer.content.at_eof():
            self._answer.release()
        else:
            self._answer.close()


@contextlib.contextmanager
def _typed(request: httpx2.Request) -> Iterator[None]:
    """aiohttp's errors in httpx's words."""
    try:
        yield
    except TimeoutError as e:
        raise httpx2.ReadTimeout(str(e) or "timed out", request=request) from e
    except (aiohttp.ClientError, ConnectionError, ValueError) as e:
        raise httpx2.ReadError(str(e) or type(e).__name__, request=request) from e
