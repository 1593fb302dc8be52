"""What both ways to a provider hold to: how large an answer may be, how long connections live.

The number of connections has no limit, since slots are the limit.
"""

from collections.abc import AsyncIterable
from typing import Final
from urllib.parse import urlsplit

from workers.model_gateway.backend import Retryable

CONNECT_S: Final = 10.0
#: A longer answer would not fit a message, and 1,000 of them not the gateway.
MAX_ANSWER_BYTES: Final = 12 * 1024 * 1024
_TOO_LARGE_TRIES: Final = 2
#: An idle connection is closed after this long; most servers do so earlier.
KEEPALIVE_S: Final = 30.0
#: Later than this after the request, a closed connection is a server that died of it.
RACE_S: Final = 1.0

#: Of an answer: as it came, or read into its place.
Body = bytes | bytearray


def environment_proxy(url: str) -> str | None:
    """The proxy that the environment names for `url`. aiohttp's `trust_env` looks at every request,
    which costs more than the request."""
    from urllib.request import getproxies, proxy_bypass  # not light, and few ask

    parts = urlsplit(url)
    if proxy_bypass(parts.hostname or ""):
        return None
    proxies = getproxies()
    return proxies.get(parts.scheme) or proxies.get("all")


async def joined(chunks: AsyncIterable[bytes]) -> bytes:
    """The body that these make. Raises Retryable above MAX_ANSWER_BYTES, having read no more."""
    parts, size = [], 0
    async for chunk in chunks:
        parts.append(chunk)
        size += len(chunk)
        if size > MAX_ANSWER_BYTES:
            raise too_large()
    return b"".join(parts)


def too_large() -> Retryable:
    """The error for an answer above MAX_ANSWER_BYTES."""
    what = f"the answer is larger than {MAX_ANSWER_BYTES} bytes"
    return Retryable(what, kind="model", healthy=True, max_tries=_TOO_LARGE_TRIES)
