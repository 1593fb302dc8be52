"""What a test's consumer has in hand, and how long a test waits for it."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from broker.base import Delivery

#: Generous, since it is only spent when a test fails.
PATIENCE_S: Final = 15.0
#: How long a test looks to see that nothing comes.
QUIET_S: Final = 0.3


class Hand:
    """Deliveries in the order in which they came."""

    def __init__(self) -> None:
        self._came: asyncio.Queue[Delivery] = asyncio.Queue()

    def take(self, delivery: Delivery) -> None:
        """The consumer's callback."""
        self._came.put_nowait(delivery)

    async def next(self) -> Delivery:
        """The next one."""
        async with asyncio.timeout(PATIENCE_S):
            return await self._came.get()

    async def next_bodies(self, count: int) -> list[bytes]:
        """The next ones' bodies, acknowledged."""
        bodies = []
        for _ in range(count):
            delivery = await self.next()
            delivery.ack()
            bodies.append(delivery.body)
        return bodies

    async def stays_empty(self) -> bool:
        """Whether nothing comes for a while."""
        try:
            async with asyncio.timeout(QUIET_S):
                await self._came.get()
        except TimeoutError:
            return True
        return False


async def until(condition: Callable[[], Awaitable[bool]], deadline_s: float = PATIENCE_S) -> None:
    """Wait for what only the server can tell. Raises TimeoutError."""
    async with asyncio.timeout(deadline_s):
        while not await condition():  # noqa: ASYNC110 - a server has no event to wait for
            await asyncio.sleep(0.02)
