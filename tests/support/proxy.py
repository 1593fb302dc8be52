"""A TCP proxy that misbehaves on command, to stand between a client and its server.

async with proxy_to("127.0.0.1", 5672) as proxy:
    client.connect(port=proxy.port)
    proxy.cut()
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from typing import Final

from tests.support.ports import free_port

CHUNK_BYTES: Final = 65_536


class Proxy:
    """What it does to the bytes that pass, from now on, for all connections."""

    def __init__(self, host: str, port: int) -> None:
        self.port = free_port()
        self.delay_s = 0.0
        """Every chunk waits this long, in both directions."""
        self.cut_after_bytes: int | None = None
        """Each connection is cut once the client has sent so many bytes; None for never."""
        self.more_bytes_each_time = 0
        """By how much every connection raises that for the next one: a cut at every stair."""
        self.refuse = False
        """New connections are closed at once."""
        self.connections = 0
        """How many were accepted so far."""
        self._target = (host, port)
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._answer_lost = False
        self._open: set[asyncio.StreamWriter] = set()

    def url(self, url: str) -> str:
        """The server's URL, leading through here."""
        return url.replace(f":{self._target[1]}", f":{self.port}")

    def cut(self) -> None:
        """Reset every open connection."""
        for writer in list(self._open):
            writer.transport.abort()

    def stall(self) -> None:
        """Keep connections open and let nothing pass, in any direction."""
        self._flowing.clear()

    def resume(self) -> None:
        """End a stall."""
        self._flowing.set()

    def lose_next_answer(self) -> None:
        """Forward what the client sends; when the server answers, cut instead."""
        self._answer_lost = True

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection of a client."""
        self.connections += 1
        if self.refuse:
            writer.transport.abort()
            return
        limit = self.cut_after_bytes
        if limit is not None:
            self.cut_after_bytes = limit + self.more_bytes_each_time
        with contextlib.suppress(OSError):
            far_reader, far_writer = await asyncio.open_connection(*self._target)
            with self._both(writer, far_writer):
                up = asyncio.create_task(self._up(reader, far_writer, limit))
                down = asyncio.create_task(self._down(far_reader, writer))
                try:
                    await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    up.cancel()
                    down.cancel()
                    await asyncio.wait({up, down})
        writer.transport.abort()

    @contextlib.contextmanager
    def _both(self, *writers: asyncio.StreamWriter) -> Generator[None]:
        self._open.update(writers)
        try:
            yield
        finally:
            self._open.difference_update(writers)
            for writer in writers:
                writer.transport.abort()

    async def _up(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limit: int | None
    ) -> None:
        sent = 0
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK_BYTES):
                await self._pass()
                keep = data if limit is None else data[: max(0, limit - sent)]
                writer.write(keep)
                await writer.drain()
                sent += len(keep)
                if limit is not None and sent >= limit:
                    return

    async def _down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK_BYTES):
                await self._pass()
                if self._answer_lost:
                    self._answer_lost = False
                    return
                writer.write(data)
                await writer.drain()

    async def _pass(self) -> None:
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        await self._flowing.wait()


@asynccontextmanager
async def proxy_to(host: str, port: int) -> AsyncGenerator[Proxy]:
    """A proxy in front of this server, while the context is open."""
    proxy = Proxy(host, port)
    clients: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(proxy.serve(reader, writer))
        clients.add(task)
        task.add_done_callback(clients.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", proxy.port)
    try:
        yield proxy
    finally:
        server.close()
        for task in clients:
            task.cancel()
        if clients:
            await asyncio.wait(clients)
        await server.wait_closed()
