"""Which policy versions an answer was sampled with, from an engine that tells only the present one.

The version is read before a call and again by a read that begins after its answer: the span holds
every version that can have sampled it. Calls that end together share one read.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final

from broker.messages import VersionSpan
from workers.model_gateway.backend import BackendError

log = logging.getLogger(__name__)

#: A version read this recently still holds for the beginning of a call: it can only be older
#: than the truth, which makes the span wider, never wrong.
_FRESH_S: Final = 1.0
#: An engine without a version (no dev mode, none set) is asked again after this long.
_NONE_S: Final = 30.0
#: Reads are this far apart, so that one serves all calls that end meanwhile.
_GATHER_S: Final = 0.02

ReadVersion = Callable[[], Awaitable[int | None]]


class VersionReader:
    """The policy version of one engine."""

    def __init__(self, read: ReadVersion) -> None:
        self._read = read
        self._version: int | None = None
        self._began_at = float("-inf")
        self._changed_at = float("-inf")
        self._lock = asyncio.Lock()

    async def known(self) -> int | None:
        """The version at most a second ago, None where there is none. Raises what reading does."""
        fresh_s = _FRESH_S if self._version is not None else _NONE_S
        moment = max(time.monotonic() - fresh_s, self._changed_at)
        if self._began_at < moment:
            await self._read_since(moment)
        return self._version

    def changed(self) -> None:
        """The engine has a new version: what was read before is of no use."""
        self._changed_at = time.monotonic()

    async def span(self, before: int | None) -> VersionSpan | None:
        """From `before` until now; None where either end is unknown.

        Never raises what reading does: the answer that it belongs to has been paid for.
        """
        if before is None:
            return None
        try:
            await self._read_since(time.monotonic())
        except BackendError as e:
            log.warning("policy version unknown", extra={"why": str(e)})
            return None
        if self._version is None:
            return None
        return VersionSpan(min=min(before, self._version), max=max(before, self._version))

    async def _read_since(self, moment: float) -> None:
        """Return once a read has ended that began after `moment`."""
        if self._began_at >= moment:
            return
        async with self._lock:
            if self._began_at < moment:  # else who had the lock before us began late enough
                await asyncio.sleep(max(self._began_at + _GATHER_S - time.monotonic(), 0))
                began_at = time.monotonic()
                self._version = await self._read()
                self._began_at = began_at
