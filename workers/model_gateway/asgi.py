"""Requests to a web application in this process: `http_client.HttpClient` without a network."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final, Protocol, TypeVar

from workers.model_gateway.http import MAX_ANSWER_BYTES, too_large
from workers.model_gateway.http_connection import Answer, Broken

T = TypeVar("T")
Message = MutableMapping[str, Any]
App = Callable[
    [Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]],
    Awaitable[None],
]

_HOST: Final = "in-process"
#: For requests that are under way when it is closed.
_CLOSE_S: Final = 5.0


class Asks(Protocol):
    """What a model server is asked through."""

    @property
    def resent(self) -> int:
        """Requests sent twice."""
        ...

    async def request(self, method: str, path: str, body: bytes = b"") -> Answer:
        """The whole answer, whatever its status. Raises ConnectionError, Retryable."""
        ...

    async def ask(self, method: str, path: str, body: bytes, read: Callable[[Answer], T]) -> T:
        """What `read` makes of the whole answer. Raises what `request` and `read` raise."""
        ...

    async def close(self) -> None:
        """Let go of it."""
        ...


class AppClient:
    """Asks an ASGI application. Who is cancelled disconnects, so that the work ends there too."""

    resent = 0

    def __init__(self, app: App) -> None:
        self._app = app
        self._running: set[asyncio.Task[None]] = set()

    async def request(self, method: str, path: str, body: bytes = b"") -> Answer:
        """Ask, and read the whole answer. Raises Broken, and Retryable for one too large."""
        exchange = _Exchange(body)
        task = asyncio.create_task(self._run(_scope(method, path, body), exchange))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        try:
            return await exchange.answer
        finally:
            exchange.leave()

    async def ask(self, method: str, path: str, body: bytes, read: Callable[[Answer], T]) -> T:
        """See Asks."""
        return read(await self.request(method, path, body))

    async def close(self) -> None:
        """Give what is under way a moment, then break it off."""
        if self._running:
            await asyncio.wait(self._running, timeout=_CLOSE_S)
        for task in list(self._running):
            task.cancel()

    async def _run(self, scope: Message, exchange: "_Exchange") -> None:
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except Exception as e:  # whatever an application does wrong
            exchange.fail(Broken(f"{type(e).__name__}: {e}"))
        else:
            exchange.fail(Broken("it gave no answer"))


class _Exchange:
    """One request and its answer, as an application sees them."""

    def __init__(self, body: bytes) -> None:
        loop = asyncio.get_running_loop()
        self.answer: asyncio.Future[Answer] = loop.create_future()
        self._left = asyncio.Event()
        self._body: bytes | None = body
        self._status = 0
        self._head: dict[bytes, bytes] = {}
        self._parts = bytearray()

    def leave(self) -> None:
        """Nobody waits for the answer any more."""
        self._left.set()
        if not self.answer.done():
            self.answer.cancel()

    def fail(self, error: Exception) -> None:
        """There will be no answer, if none was given."""
        if not self.answer.done():
            self.answer.set_exception(error)

    async def receive(self) -> Message:
        """(ASGI)"""
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """(ASGI)"""
        if message["type"] == "http.response.start":
            self._status = message["status"]
            headers = message.get("headers", ())
            self._head = {bytes(name).lower(): bytes(value) for name, value in headers}
        elif message["type"] == "http.response.body":
            self._parts += message.get("body", b"")
            if len(self._parts) > MAX_ANSWER_BYTES:
                self.fail(too_large())
            elif not message.get("more_body") and not self.answer.done():
                self.answer.set_result(Answer(self._status, self._head, bytes(self._parts)))


def _scope(method: str, path: str, body: bytes) -> Message:
    target, _, query = path.partition("?")
    headers = {"host": _HOST, "content-type": "application/json", "content-length": str(len(body))}
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": target,
        "raw_path": target.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(k.encode(), v.encode()) for k, v in headers.items()],
        "client": (_HOST, 0),
        "server": (_HOST, 80),
        "state": {},
    }
