"""A journal inside this process, over any table: what memory and SQLite share of `Journal`.

Leases live in the process's memory: owners of a dead process are dead.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar, TypeVarTuple

from broker.journal.base import (
    LEASE_S,
    Begun,
    CallRef,
    Committed,
    Finished,
    Gone,
    Lost,
    Overview,
    Stored,
    Taken,
    Upload,
)
from broker.journal.listening import TellsNobody
from broker.journal.rules import Rules, Table

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class LocalJournal(TellsNobody, ABC):
    """`Journal` over a table; implementations say how an operation becomes atomic."""

    def __init__(self, table: Table, *, lease_s: float = LEASE_S) -> None:
        self._lease_s = lease_s
        self._leases: dict[str, float] = {}
        self._rules = Rules(table, self._alive)

    @abstractmethod
    def _do(self, operation: Callable[[*Ts], T], *args: *Ts) -> Awaitable[T]:
        """Run one operation atomically; return when it is durable as this journal means it."""

    def _alive(self, inbox: str) -> bool:
        return time.monotonic() < self._leases.get(inbox, 0.0)

    async def take(
        self, rollout: str, inbox: str, *, counts: bool = True, uncounted: int = 0
    ) -> Taken:
        return await self._do(self._rules.take, rollout, inbox, counts, uncounted)

    async def release(self, rollout: str, epoch: str, inbox: str) -> None:
        await self._do(self._rules.release, rollout, epoch, inbox)

    async def begin(self, call: CallRef, *, force: bool = False) -> Begun:
        return await self._do(self._rules.begin, call, force)

    async def put_off(self, call: CallRef) -> None:
        await self._do(self._rules.put_off, call)

    async def finish(
        self, call: CallRef, result: bytes, *, state: bytes | None = None, state_version: int = 0
    ) -> Finished | Gone | Lost:
        return await self._do(self._rules.finish, call, result, state, state_version)

    async def keep_first(
        self, rollout: str, path: str, request_hash: bytes, result: bytes
    ) -> Stored | Committed:
        return await self._do(self._rules.keep_first, rollout, path, request_hash, result)

    async def look(self, rollout: str, epoch: str, paths: Sequence[str]) -> Overview | Gone | Lost:
        return await self._do(self._rules.look, rollout, epoch, tuple(paths))

    async def result(self, rollout: str, epoch: str, path: str) -> bytes | None:
        return await self._do(self._rules.result, rollout, epoch, path)

    async def upload(self, upload: Upload) -> bool:
        return await self._do(self._rules.upload, upload)

    async def restart(self, rollout: str, epoch: str) -> int | None:
        return await self._do(self._rules.restart, rollout, epoch)

    async def strike(self, rollout: str, epoch: str) -> int:
        return await self._do(self._rules.strike, rollout, epoch)

    async def ended(self, rollout: str, epoch: str) -> None:
        await self._do(self._rules.ended, rollout, epoch)

    async def committed(self, rollouts: Sequence[str]) -> None:
        await self._do(self._rules.committed, tuple(rollouts))

    async def forget(self, rollouts: Sequence[str]) -> None:
        await self._do(self._rules.forget, tuple(rollouts))

    async def renew_lease(self, inbox: str, for_s: float | None = None) -> None:
        now = time.monotonic()
        self._leases = {i: t for i, t in self._leases.items() if t > now}
        self._leases[inbox] = now + (self._lease_s if for_s is None else for_s)

    async def end_lease(self, inbox: str) -> None:
        self._leases.pop(inbox, None)
