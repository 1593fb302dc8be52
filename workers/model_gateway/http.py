"""HTTP sessions and bodies: no limit of connections, since slots are the limit; one of size."""

import urllib.request
from collections.abc import AsyncIterable
from typing import Final
from urllib.parse import urlsplit

import aiohttp

from workers.model_gateway.backend import Retryable

CONNECT_S: Final = 10.0
#: A longer answer would not fit a message, and 1,000 of them not the gateway.
MAX_ANSWER_BYTES: Final = 12 * 1024 * 1024
_TOO_LARGE_TRIES: Final = 2
_KEEPALIVE_S: Final = 30.0


def new_session(proxy: str | None = None) -> aiohttp.ClientSession:
    """A session for one endpoint. Call on the event loop; close it. Time out around requests."""
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEPALIVE_S, ttl_dns_cache=60)
    timeout = aiohttp.ClientTimeout(total=None, connect=CONNECT_S)
    return aiohttp.ClientSession(connector=connector, timeout=timeout, proxy=proxy)


def environment_proxy(url: str) -> str | None:
    """The proxy that the environment names for `url`. aiohttp's `trust_env` looks at every request,
    which costs more than the request."""
    parts = urlsplit(url)
    if urllib.request.proxy_bypass(parts.hostname or ""):
        return None
    proxies = urllib.request.getproxies()
    return proxies.get(parts.scheme) or proxies.get("all")


async def read_bounded(answer: aiohttp.ClientResponse) -> bytes:
    """The whole body. Raises Retryable above MAX_ANSWER_BYTES, having read no more."""
    if answer.content_length is not None and answer.content_length <= MAX_ANSWER_BYTES:
        return await answer.read()
    return await joined(answer.content.iter_any())


async def joined(chunks: AsyncIterable[bytes]) -> bytes:
    """The body that these make. Raises Retryable above MAX_ANSWER_BYTES, having read no more."""
    parts, size = [], 0
    async for chunk in chunks:
        parts.append(chunk)
        size += len(chunk)
        if size > MAX_ANSWER_BYTES:
            what = f"the answer is larger than {MAX_ANSWER_BYTES} bytes"
            raise Retryable(what, kind="model", healthy=True, max_tries=_TOO_LARGE_TRIES)
    return b"".join(parts)
