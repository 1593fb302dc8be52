"""The endpoints of one model, as one backend: where each call goes.

A rollout stays with one endpoint, so that its prefix is cached there; moves while that one is
down, or full while another is not; and goes back when it has recovered.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Final

from broker.messages import ModelResult
from broker.retries import Patience
from broker.shared.memory import MemoryShared
from workers.model_gateway.allowance import Allowance
from workers.model_gateway.backend import BackendRequest, Retryable, StaleWeights
from workers.model_gateway.endpoint import Endpoint

#: A call waits this long for an endpoint to come back, then in the broker.
PATIENCE_S: Final = 30.0
#: There it goes round the shortest rung: all calls are back soon after an endpoint is.
_WHILE_DOWN: Final = Patience(least_s=5.0)
#: A rollout leaves its full endpoint only for one that is this empty: its prefix costs less.
_ROOM: Final = 0.5


class AllDown(Retryable):
    """No endpoint is up, or new weights are loaded. Nothing was sent, so it counts as no try."""

    def __init__(self, why: str) -> None:
        super().__init__(why, patience=_WHILE_DOWN)


class EndpointPool:
    """Chooses among the endpoints of one model."""

    def __init__(self, endpoints: Sequence[Endpoint], allowance: Allowance | None = None) -> None:
        self.endpoints = endpoints
        self._allowance = allowance or Allowance(MemoryShared(), "")
        self._changed = asyncio.Event()
        self._paused = ""
        self._version: int | None = None

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls, endpoints: Sequence[Endpoint], allowance: Allowance | None = None
    ) -> AsyncIterator["EndpointPool"]:
        """A pool whose endpoints are looked after while the context is open, then closed."""
        pool = cls(endpoints, allowance)
        tasks = [
            asyncio.create_task(task)
            for endpoint in endpoints
            for task in (endpoint.watch(pool._wake), endpoint.follow_load())
        ]
        tasks.append(asyncio.create_task(pool._allowance.settle()))
        try:
            yield pool
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            for endpoint in endpoints:
                await endpoint.backend.close()

    async def generate(self, request: BackendRequest) -> ModelResult:
        """Ask once, at the rollout's endpoint or its stand-in. Raises BackendErrors, AllDown."""
        if not self._allowance.limited:
            return await self._ask(request)
        guessed, usage = await self._allowance.admit(), None
        try:
            result = await self._ask(request)
            usage = result.usage
            return result
        finally:
            self._allowance.used(guessed, usage)

    def pause(self, why: str) -> None:
        """Send nothing until `resume`. What is in flight goes on."""
        self._paused = why

    @property
    def paused(self) -> bool:
        """Whether nothing may be sent."""
        return bool(self._paused)

    def resume(self, version: int | None = None) -> None:
        """Go on, at once for those who wait; with these weights, or any where it is None."""
        if self._paused or version != self._version:
            self._paused, self._version = "", version
            for endpoint in self.endpoints:
                self.loaded(endpoint)

    @property
    def stale(self) -> list[Endpoint]:
        """The endpoints that get no calls until they have the weights again."""
        return [endpoint for endpoint in self.endpoints if endpoint.stale]

    def loaded(self, endpoint: Endpoint) -> None:
        """It has the weights, as far as we know: its next call looks."""
        endpoint.stale = ""
        endpoint.backend.policy_changed(self._version)
        self._wake()

    async def _ask(self, request: BackendRequest) -> ModelResult:
        ranked = self._ranked(request.rollout)
        while True:
            endpoint = self._now(ranked) or await self._usable(ranked)
            if not endpoint.slots.taken():
                await endpoint.slots.wait(request.lane, request.run)
            try:
                # it may have gone down while we waited for the slot
                if endpoint.usable and not self._paused:
                    return await endpoint.ask(request, self._wake)
            except StaleWeights:
                pass  # the next one's turn
            finally:
                endpoint.slots.release()

    def _ranked(self, rollout: str) -> Sequence[Endpoint]:
        if len(self.endpoints) == 1:
            return self.endpoints
        return sorted(self.endpoints, key=lambda e: e.rank(rollout), reverse=True)

    def _now(self, ranked: Sequence[Endpoint]) -> Endpoint | None:
        return None if self._paused else choose(ranked)

    async def _usable(self, ranked: Sequence[Endpoint]) -> Endpoint:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_S):
                while (endpoint := self._now(ranked)) is None:
                    await self._changed.wait()
                return endpoint
        if self._paused:
            raise AllDown(self._paused)
        why = "; ".join(f"{e.url}: {e.why}" for e in ranked)
        raise AllDown(f"every endpoint is down: {why}")

    def _wake(self) -> None:
        """Let everybody who waits look again."""
        self._changed.set()
        self._changed = asyncio.Event()


def choose(ranked: Sequence[Endpoint]) -> Endpoint | None:
    """The first usable endpoint; a less loaded one while that is full; None when all are down."""
    first = None
    for endpoint in ranked:
        if endpoint.usable:
            slots = endpoint.slots
            if slots.held < (slots.limit if first is None else slots.limit * _ROOM):
                return endpoint
            first = first or endpoint
    return first
