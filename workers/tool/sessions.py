"""The live objects of one tool worker: opened by a rollout's setup, closed after its verdict.

Each lives in a task of its own, so that what its context manager entered it also leaves. It ends
when it is closed, when its lease has run out unused, or with the worker.
"""

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from workers.limited import described
from workers.sessions import Address, SessionGone
from workers.spec import SessionSpec

log = logging.getLogger(__name__)

#: What closing may take before it is cancelled.
CLOSE_S: Final = 10.0


class Sessions:
    """All sessions that live in this process."""

    def __init__(self, worker_id: str) -> None:
        self.worker_id = worker_id
        self._boot = uuid.uuid4().hex
        self._living: dict[str, _Session] = {}

    def __len__(self) -> int:
        return len(self._living)

    async def open(self, spec: SessionSpec, row: Mapping[str, Any], environment: str) -> Address:
        """Open one. Raises what its author's function raises, Overdue too."""
        session = _Session(spec, row)
        name = uuid.uuid4().hex
        try:
            await session.opened()
        except BaseException:
            await asyncio.shield(session.end())
            raise
        self._living[name] = session
        session.task.add_done_callback(lambda _: self._living.pop(name, None))
        log.debug("session opened", extra={"environment": environment, "open": len(self)})
        return Address(worker=self.worker_id, boot=self._boot, session=name, lease_s=spec.lease_s)

    @contextmanager
    def use(self, address: Address) -> Generator[Any, None, None]:
        """The live object; its lease does not run meanwhile. Raises SessionGone."""
        session = self._living.get(address.session)
        if session is None or address.boot != self._boot or session.closing:
            raise SessionGone("the session has been closed, or its lease has run out")
        session.users += 1
        try:
            yield session.live
        finally:
            session.users -= 1
            session.used()

    async def close(self, address: Address) -> None:
        """Close one; it may be closed already."""
        session = self._living.get(address.session)
        if session is not None:
            await session.end()

    async def close_all(self) -> None:
        """Close all: the worker stops."""
        async with asyncio.TaskGroup() as group:
            for session in list(self._living.values()):
                group.create_task(session.end())


class _Session:
    def __init__(self, spec: SessionSpec, row: Mapping[str, Any]) -> None:
        self.users = 0
        self.live: Any = None
        self._spec = spec
        self._row = row
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._close = asyncio.Event()
        self.used()
        self.task = asyncio.create_task(self._run())

    def used(self) -> None:
        self._until = asyncio.get_running_loop().time() + self._spec.lease_s

    @property
    def closing(self) -> bool:
        return self._close.is_set() or self.task.done()

    async def opened(self) -> None:
        async with asyncio.timeout(self._spec.timeout_s):
            await asyncio.shield(self._ready)

    async def end(self) -> None:
        """Ask it to close, and wait; then insist."""
        self._close.set()
        if not self._ready.done():
            self.task.cancel()
        done, _ = await asyncio.wait([self.task], timeout=CLOSE_S)
        if not done:
            self.task.cancel()
            await asyncio.wait([self.task], timeout=1.0)

    async def _run(self) -> None:
        try:
            async with self._spec.open(self._row) as self.live:
                self._ready.set_result(None)
                await self._until_closed()
        except asyncio.CancelledError:
            if not self._ready.done():
                self._ready.cancel()
            raise
        except BaseException as e:  # the border to user code
            self._failed(e)

    def _failed(self, error: BaseException) -> None:
        if self._ready.done():
            log.error("session ended badly", exc_info=error)
        elif isinstance(error, Exception) and not isinstance(error, StopIteration):
            self._ready.set_exception(error)
        else:
            self._ready.set_exception(RuntimeError(f"raised {described(error)}"))

    async def _until_closed(self) -> None:
        clock = asyncio.get_running_loop().time
        while not self._close.is_set():
            left = self._until - clock() if not self.users else self._spec.lease_s
            if left <= 0:
                return log.warning("session expired", extra={"lease_s": self._spec.lease_s})
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._close.wait()
