"""Gateways hear of new weights: all pause, one has the engines load them, all go on.

The record in the store is the truth, control messages only say that it is worth a look. Whoever
leads says so every few seconds; when it dies another gateway begins anew, which is harmless.
Calls that come meanwhile wait, first in the pool, then in the broker.

An engine inside a gateway's process can be reached by nobody else. So each such gateway loads what
the record names into its own: all at the same time, and one that starts later before its first
call. What can't be loaded is tried again, and nothing is sampled with older weights meanwhile.
"""

import asyncio
import contextlib
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Final

from broker.base import Broker, Delivery, Outgoing
from broker.errors import JournalUnavailable
from broker.shared.base import LEAD_S, PolicyState, PolicyUpdate, PolicyUpdateFailed, Shared
from broker.topology import CONTROL, control_queue
from workers.model_gateway.asgi import Asks
from workers.model_gateway.config import ModelConfig
from workers.model_gateway.endpoint import Endpoint
from workers.model_gateway.policy import update_policy
from workers.model_gateway.pool import EndpointPool

log = logging.getLogger(__name__)

#: How soon an update is seen whose hint was lost.
_LOOK_EVERY_S: Final = 2.0
#: While an update is open.
_LOOK_OPEN_S: Final = 0.5
#: After an engine did not take back the weights.
_MEND_AGAIN_S: Final = 10.0


@contextlib.asynccontextmanager
async def watching(
    broker: Broker,
    shared: Shared,
    models: Mapping[str, tuple[ModelConfig, EndpointPool]],
    engines: Mapping[str, Asks],
) -> AsyncIterator[None]:
    """Take part in the policy updates of these models while the context is open.

    `engines`: those in this process, by model.
    """
    if not models:
        yield
        return
    who = f"gateway-{uuid.uuid4().hex[:12]}"
    watches = [
        PolicyWatch(broker, shared, who, *served, engines.get(name))
        for name, served in models.items()
    ]
    await broker.declare([control_queue(who)])
    async with broker.consume(control_queue(who).name, 100, _telling(watches)):
        tasks = [asyncio.create_task(watch.run()) for watch in watches]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)


class PolicyWatch:
    """One model's part in one process."""

    def __init__(
        self,
        broker: Broker,
        shared: Shared,
        who: str,
        config: ModelConfig,
        pool: EndpointPool,
        inside: Asks | None = None,
    ) -> None:
        self._broker = broker
        self._shared = shared
        self._who = who
        self._config = config
        self._pool = pool
        self._inside = inside
        self._loaded = ""
        """The update whose weights the engine inside has."""
        self._hinted = asyncio.Event()
        self._mending: asyncio.Task[None] | None = None
        if inside is not None:
            pool.pause("which version of the model to load is not known yet")

    def hint(self) -> None:
        """Look now."""
        self._hinted.set()

    async def run(self) -> None:
        """Follow the record. Runs until cancelled."""
        try:
            await self._follow()
        finally:
            if self._mending is not None:
                self._mending.cancel()
                await asyncio.wait([self._mending])

    async def _follow(self) -> None:
        while True:
            self._hinted.clear()
            try:
                wait_s = await self._look()
            except JournalUnavailable as e:
                log.warning("policy record unavailable", extra={"error": str(e)})
                wait_s = _LOOK_EVERY_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._hinted.wait()

    async def _look(self) -> float:
        """Do what the record asks for; how long until the next look."""
        model = self._config.name
        state = await self._shared.policy(model)
        if state is None or not (state.open or self._is_behind(state)):
            done = state is not None and state.phase == "done"
            self._pool.resume(state.version if state is not None and done else None)
            if state is not None and done and self._pool.stale:
                self._mend_beside(state.update)
            return _LOOK_EVERY_S
        self._pool.pause(f"version {state.update.version} of the model is being loaded")
        if await self._shared.lead(model, state.update.id, self._who):
            await self._load(state.update)
            self._broker.publish_hint(Outgoing(CONTROL.name, "", b"", persistent=False))
        elif self._is_behind(state) and not await self._load_inside(state.update):
            return _LOOK_EVERY_S
        return _LOOK_OPEN_S

    def _is_behind(self, state: PolicyState) -> bool:
        return (
            self._inside is not None and state.phase != "failed" and state.update.id != self._loaded
        )

    async def _load_inside(self, update: PolicyUpdate) -> bool:
        """Have our own engine load what another gateway leads, or led; whether it did."""
        error = await self._try(update)
        if error:
            self._pool.pause(f"version {update.version} of the model cannot be loaded: {error}")
        return not error

    async def _load(self, update: PolicyUpdate) -> None:
        """Have every endpoint load it, staying the leader meanwhile; say what came of it."""
        async with _repeating(lambda: self._shared.lead(self._config.name, update.id, self._who)):
            error = await self._try(update)
        await self._shared.settle(self._config.name, update, error)
        self._pool.resume(None if error else update.version)

    async def _try(self, update: PolicyUpdate) -> str:
        """What went wrong; empty when all that we reach has the weights."""
        model = self._config.name
        log.info("policy update", extra={"model": model, "version": update.version})
        try:
            await update_policy(
                self._config,
                version=update.version,
                path=update.path,
                mode=update.mode,
                before=update.before,
                inside=self._inside,
            )
        except PolicyUpdateFailed as e:
            log.error("policy update failed", extra={"model": model, "why": str(e)})
            return str(e)
        self._loaded = update.id
        return ""

    def _mend_beside(self, update: PolicyUpdate) -> None:
        """Looking must go on while weights are loaded."""
        if self._mending is None or self._mending.done():
            self._mending = asyncio.create_task(self._mend(update))

    async def _mend(self, update: PolicyUpdate) -> None:
        """Engines that were started anew get the weights again, from one gateway; others look."""
        model, who = self._config.name, f"{self._who}-restores"
        stale = self._pool.stale
        try:
            if await self._shared.restore(model, update.id, who):
                async with _repeating(lambda: self._shared.restore(model, update.id, who)):
                    failed = await self._restore(update, stale)
                await self._shared.restored(model, who)
                if failed:
                    return await asyncio.sleep(_MEND_AGAIN_S)
        except JournalUnavailable as e:
            log.warning("policy record unavailable", extra={"error": str(e)})
        for endpoint in stale:
            self._pool.loaded(endpoint)

    async def _restore(self, update: PolicyUpdate, stale: Sequence[Endpoint]) -> bool:
        """Whether it failed. What these engines sample meanwhile is not the model's: abort it."""
        served = zip(self._config.urls, self._pool.endpoints, strict=True)
        urls = [url for url, endpoint in served if endpoint in stale]
        version, path = update.version, update.path
        told = {"model": self._config.name, "version": version}
        log.info("weights are loaded into an engine that lost them", extra=told)
        try:
            await update_policy(
                self._config,
                version=version,
                path=path,
                mode="abort",
                urls=urls,
                inside=self._inside,
            )
        except PolicyUpdateFailed as e:
            log.error("an engine stays without calls", extra=told | {"why": str(e)})
            for endpoint in stale:
                endpoint.stale = f"version {version} could not be loaded again: {e}"
            return True
        return False


@contextlib.asynccontextmanager
async def _repeating(say: Callable[[], Awaitable[bool]]) -> AsyncIterator[None]:
    """Say it again as often as a lease needs it, while the context is open."""

    async def repeat() -> None:
        while True:
            await asyncio.sleep(LEAD_S)
            with contextlib.suppress(JournalUnavailable):
                await say()

    repeating = asyncio.create_task(repeat())
    try:
        yield
    finally:
        repeating.cancel()
        await asyncio.wait([repeating])


def _telling(watches: Sequence[PolicyWatch]) -> Callable[[Delivery], None]:
    def on_hint(delivery: Delivery) -> None:
        delivery.ack()
        for watch in watches:
            watch.hint()

    return on_hint
