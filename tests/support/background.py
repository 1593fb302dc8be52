"""An event loop in a thread, for servers that run beside a test which blocks."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager
from typing import Any, TypeVar

T = TypeVar("T")
WAIT_S = 30.0


class Background:
    """Runs coroutines from another thread; ends what it entered when it is closed."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="background")
        self._stack = AsyncExitStack()
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Await it there; its result."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(WAIT_S)

    def call(self, function: Callable[..., T], *args: Any) -> T:
        """Call it there; its result."""

        async def work() -> T:
            return function(*args)

        return self.run(work())

    def enter(self, context: AbstractAsyncContextManager[T]) -> T:
        """Open a context there until we are closed."""
        return self.run(self._enter(context))

    async def _enter(self, context: AbstractAsyncContextManager[T]) -> T:
        return await self._stack.enter_async_context(context)

    @contextmanager
    def entered(self, context: AbstractAsyncContextManager[T]) -> Generator[T]:
        """Open a context there for as long as this one is open."""
        opened = self.run(context.__aenter__())
        try:
            yield opened
        finally:
            self.run(context.__aexit__(None, None, None))

    def close(self) -> None:
        """Leave the contexts, end the loop."""
        self.run(self._close(self._stack.aclose))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(WAIT_S)
        self._loop.close()

    async def _close(self, close: Callable[[], Awaitable[None]]) -> None:
        await close()
