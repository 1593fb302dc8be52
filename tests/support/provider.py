"""A model provider on 127.0.0.1 that can do everything wrong that providers do.

It speaks HTTP/1.1 by hand, so that it can break off anywhere. Each request gets the next behaviour
of the script, then the default for ever; `seen` has every request, in order of arrival.
"""

import asyncio
import contextlib
import json
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Seen:
    """One request as it arrived."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    at: float
    """Monotonic seconds."""

    @property
    def json(self) -> Any:
        """The body, read."""
        return json.loads(self.body)


Behaviour = Callable[[Seen, asyncio.StreamWriter], Awaitable[None]]


@dataclass(slots=True)
class FakeProvider:
    """A running provider: change `default` and `script` at any time."""

    default: Behaviour
    script: list[Behaviour] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    url: str = ""
    other: dict[str, Behaviour] = field(default_factory=dict)
    """Behaviours of GET paths, `/health` or `/v1/models`; others answer 404."""
    probes: list[Seen] = field(default_factory=list)
    """The GET requests."""
    in_flight: int = 0
    most_in_flight: int = 0
    _port: int = 0
    _server: asyncio.Server | None = None
    _connections: set[asyncio.Task[None]] = field(default_factory=set)
    _arrived: asyncio.Event = field(default_factory=asyncio.Event)

    async def requests(self, count: int, within_s: float = 10.0) -> None:
        """Wait until so many have arrived."""
        async with asyncio.timeout(within_s):
            while len(self.seen) < count:
                self._arrived.clear()
                await self._arrived.wait()

    async def start(self) -> None:
        """Listen, on the same port as before."""
        self._server = await asyncio.start_server(
            self._connected, "127.0.0.1", self._port, backlog=4096
        )
        self._port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}/v1"

    async def stop(self) -> None:
        """Close the port and every connection: what a crashed server looks like."""
        if self._server is not None:
            self._server.close()
        for task in self._connections:
            task.cancel()
        if self._connections:
            await asyncio.wait(self._connections, timeout=5)
        self._server = None

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            try:
                while not writer.is_closing():
                    await self._answer(await _read(reader), writer)
            finally:
                writer.close()

    async def _answer(self, request: Seen, writer: asyncio.StreamWriter) -> None:
        if request.method == "GET":
            self.probes.append(request)
            return await self.other.get(request.path, error(404, "not here"))(request, writer)
        self.seen.append(request)
        self._arrived.set()
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            behave = self.script.pop(0) if self.script else self.default
            await behave(request, writer)
        finally:
            self.in_flight -= 1


async def _read(reader: asyncio.StreamReader) -> Seen:
    start = await reader.readexactly(1)
    if not start.isalpha():  # somebody speaks TLS to us
        raise ConnectionAbortedError
    head = (start + await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, path, _ = head[0].split(" ", 2)
    headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in head[1:])}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Seen(method, path, headers, body, time.monotonic())


@contextlib.asynccontextmanager
async def running(
    default: Behaviour | None = None, script: Iterable[Behaviour] = ()
) -> AsyncIterator[FakeProvider]:
    """A provider for the length of a test."""
    provider = FakeProvider(default or says("hello"), list(script))
    await provider.start()
    try:
        yield provider
    finally:
        await provider.stop()


def raw(
    status: int,
    body: bytes,
    headers: Mapping[str, str] | None = None,
    *,
    content_type: str = "application/json",
    delay_s: float = 0.0,
) -> Behaviour:
    """Answer exactly this."""
    head = _head(status, {"content-type": content_type, **(headers or {})}, len(body))

    async def behave(_: Seen, writer: asyncio.StreamWriter) -> None:
        if delay_s:
            await asyncio.sleep(delay_s)
        writer.write(head + body)
        await writer.drain()

    return behave


def _head(status: int, headers: Mapping[str, str], length: int) -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"content-length: {length}"]
    return "\r\n".join([*lines, *(f"{k}: {v}" for k, v in headers.items()), "", ""]).encode()


def answers(body: object, *, delay_s: float = 0.0) -> Behaviour:
    """Answer 200 with this as JSON."""
    return raw(200, json.dumps(body).encode(), delay_s=delay_s)


def says(text: str, *, delay_s: float = 0.0) -> Behaviour:
    """A plain chat answer."""
    return answers(chat({"role": "assistant", "content": text}), delay_s=delay_s)


def calls(*tool_calls: Mapping[str, Any]) -> Behaviour:
    """A chat answer with these tool calls and null content, as most providers have it."""
    message = {"role": "assistant", "content": None, "tool_calls": list(tool_calls)}
    return answers(chat(message, "tool_calls"))


def tool_call(name: str, arguments: str, id_: str | None = "call_0") -> dict[str, Any]:
    """One tool call of a chat answer."""
    function = {"name": name, "arguments": arguments}
    return {"id": id_, "type": "function", "function": function}


def chat(message: Mapping[str, Any], finish_reason: str = "stop") -> dict[str, Any]:
    """A Chat Completions answer around this message."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": "fake-1",
        "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}],
        "usage": {
            "prompt_tokens": 20,
            "completion_tokens": 5,
            "total_tokens": 25,
            "prompt_tokens_details": {"cached_tokens": 8},
            "completion_tokens_details": {"reasoning_tokens": 2},
        },
    }


def error(status: int, message: str, code: str = "", **headers: str) -> Behaviour:
    """An error as OpenAI words it; `retry_after="3"` becomes a header."""
    body = {"error": {"message": message, "type": "error", "code": code}}
    named = {k.replace("_", "-"): v for k, v in headers.items()}
    return raw(status, json.dumps(body).encode(), named)


def repeats_headers(status: int) -> Behaviour:
    """An error whose words are the request's own headers; with status 200 it is in the body."""

    async def behave(seen: Seen, writer: asyncio.StreamWriter) -> None:
        await error(status, f"refused: {json.dumps(dict(seen.headers))}")(seen, writer)

    return behave


async def hangs(_: Seen, __: asyncio.StreamWriter) -> None:
    """Never answer."""
    await asyncio.sleep(3600)


async def hangs_after_headers(_: Seen, writer: asyncio.StreamWriter) -> None:
    """Promise an answer, never send it."""
    writer.write(_head(200, {"content-type": "application/json"}, 1000))
    await writer.drain()
    await asyncio.sleep(3600)


async def breaks_off(_: Seen, writer: asyncio.StreamWriter) -> None:
    """Send half of the promised body, then close."""
    body = json.dumps(chat({"role": "assistant", "content": "x" * 1000})).encode()
    writer.write(_head(200, {"content-type": "application/json"}, len(body)) + body[:500])
    await writer.drain()
    writer.close()


async def closes(_: Seen, writer: asyncio.StreamWriter) -> None:
    """Close the connection without a word."""
    writer.close()


async def resets(_: Seen, writer: asyncio.StreamWriter) -> None:
    """Reset the connection."""
    reset(writer)


def reset(writer: asyncio.StreamWriter) -> None:
    """Close it with RST: `abort` alone says FIN where everything was read."""
    linger = struct.pack("ii", 1, 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()
