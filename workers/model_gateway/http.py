"""One aiohttp session per endpoint: no limit of its own, since slots are the limit."""

from typing import Final

import aiohttp

CONNECT_S: Final = 10.0
_KEEPALIVE_S: Final = 30.0


def new_session() -> aiohttp.ClientSession:
    """A session for one endpoint. Call on the event loop; close it."""
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEPALIVE_S, ttl_dns_cache=60)
    return aiohttp.ClientSession(connector=connector, auto_decompress=True, trust_env=True)
