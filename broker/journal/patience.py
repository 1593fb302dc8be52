"""Waiting for a journal that does not answer, where giving up would waste what was paid for."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from broker.errors import JournalUnavailable

log = logging.getLogger(__name__)
T = TypeVar("T")


async def patiently(ask: Callable[[], Awaitable[T]]) -> T:
    """Ask until the journal answers. For results in hand: a delivery can always be given back."""
    while True:
        try:
            return await ask()
        except JournalUnavailable as e:
            log.warning("journal unavailable", extra={"error": str(e)})
            await asyncio.sleep(random.uniform(0.5, 1.0))


__all__ = ["patiently"]
