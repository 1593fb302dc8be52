"""Who posts a message in tests, and a broker that lets the test say how that ends."""

import asyncio

from broker.base import Outgoing, Sender
from broker.errors import WarrenError
from broker.memory import MemoryBroker
from tests.support.hand import PATIENCE_S


class Posting:
    """A sender that keeps what it hears (base.Sender)."""

    def __init__(self) -> None:
        self.wanted = True
        self.ends: list[WarrenError | None] = []
        self._ended = asyncio.Event()

    def on_end(self, error: WarrenError | None) -> None:
        self.ends.append(error)
        self._ended.set()

    async def end(self) -> WarrenError | None:
        """How it ended."""
        async with asyncio.timeout(PATIENCE_S):
            await self._ended.wait()
        return self.ends[0]


class Silent(MemoryBroker):
    """Takes what is posted when the test says so, not before."""

    def __init__(self) -> None:
        super().__init__()
        self.posted: list[tuple[Outgoing, Sender]] = []
        self.came = asyncio.Event()

    def post(self, message: Outgoing, sender: Sender) -> None:
        self.posted.append((message, sender))
        self.came.set()

    def take(self) -> Sender:
        """The oldest one reaches its queue, and is confirmed."""
        message, sender = self.posted.pop(0)
        super().post(message, sender)
        return sender

    def refuse(self, error: WarrenError) -> Sender:
        """The oldest one does not, for this reason."""
        _, sender = self.posted.pop(0)
        sender.on_end(error)
        return sender
