"""Says again what passes an exchange: later, in another order, as often as it is told.

What a publisher does that never heard the confirmation, and what a network does that is late.
"""

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncGenerator, Iterable

import aio_pika
from aio_pika.abc import AbstractExchange, AbstractIncomingMessage

_HEADER = "echo"


class Echo:
    """One of them; `heard` is how many messages it repeats, by exchange."""

    def __init__(self, chance: random.Random, times: int, late_s: float) -> None:
        self.heard: Counter[str] = Counter()
        self._chance = chance
        self._times = times
        self._late_s = late_s
        self._tasks: set[asyncio.Task[None]] = set()

    async def listen(
        self, channel: aio_pika.abc.AbstractChannel, exchange: str, keys: Iterable[str]
    ) -> None:
        """Repeat what is published there under one of these keys."""
        heard = await channel.get_exchange(exchange)
        queue = await channel.declare_queue(exclusive=True)
        for key in keys:
            await queue.bind(heard, key)

        async def hear(message: AbstractIncomingMessage) -> None:
            self._hear(heard, message)

        await queue.consume(hear, no_ack=True)

    def _hear(self, exchange: AbstractExchange, message: AbstractIncomingMessage) -> None:
        if _HEADER in message.headers:
            return
        self.heard[exchange.name] += 1
        for _ in range(self._times):
            task = asyncio.create_task(self._say(exchange, message))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _say(self, exchange: AbstractExchange, message: AbstractIncomingMessage) -> None:
        await asyncio.sleep(self._chance.uniform(0, self._late_s))
        again = aio_pika.Message(
            message.body,
            headers={**message.headers, _HEADER: 1},
            type=message.type,
            delivery_mode=message.delivery_mode,
        )
        with contextlib.suppress(aio_pika.exceptions.PublishError):  # its queue is gone
            await exchange.publish(again, message.routing_key or "")

    @property
    def silent(self) -> bool:
        """Whether all that was heard has been said again."""
        return not self._tasks

    async def close(self) -> None:
        """Say nothing more."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)


@contextlib.asynccontextmanager
async def echoing(
    url: str, keys: Iterable[tuple[str, str]], *, seed: int, times: int = 2, late_s: float = 1.0
) -> AsyncGenerator[Echo]:
    """Repeat what is published under these pairs of exchange and routing key."""
    connection = await aio_pika.connect(url)
    echo = Echo(random.Random(seed), times, late_s)
    try:
        channel = await connection.channel()
        for exchange, key in keys:
            await echo.listen(channel, exchange, [key])
        yield echo
    finally:
        await echo.close()
        await connection.close()
