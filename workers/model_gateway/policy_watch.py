"""Gateways hear of new weights: all pause, one has the engines load them, all go on.

The record in the store is the truth, control messages only say that it is worth a look. Whoever
leads says so every few seconds; when it dies another gateway begins anew, which is harmless.
Calls that come meanwhile wait, first in the pool, then in the broker.
"""

import asyncio
import contextlib
import logging
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Final

from broker.base import Broker, Delivery, Outgoing
from broker.errors import JournalUnavailable
from broker.shared.base import LEAD_S, PolicyUpdate, PolicyUpdateFailed, Shared
from broker.topology import CONTROL, control_queue
from workers.model_gateway.config import ModelConfig
from workers.model_gateway.policy import update_policy
from workers.model_gateway.pool import EndpointPool

log = logging.getLogger(__name__)

#: How soon an update is seen whose hint was lost.
_LOOK_EVERY_S: Final = 2.0
#: While an update is open.
_LOOK_OPEN_S: Final = 0.5


@contextlib.asynccontextmanager
async def watching(
    broker: Broker, shared: Shared, models: Mapping[str, tuple[ModelConfig, EndpointPool]]
) -> AsyncIterator[None]:
    """Take part in the policy updates of these models while the context is open."""
    if not models:
        yield
        return
    who = f"gateway-{uuid.uuid4().hex[:12]}"
    watches = [PolicyWatch(broker, shared, who, *served) for served in models.values()]
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
        self, broker: Broker, shared: Shared, who: str, config: ModelConfig, pool: EndpointPool
    ) -> None:
        self._broker = broker
        self._shared = shared
        self._who = who
        self._config = config
        self._pool = pool
        self._hinted = asyncio.Event()

    def hint(self) -> None:
        """Look now."""
        self._hinted.set()

    async def run(self) -> None:
        """Follow the record. Runs until cancelled."""
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
        if state is None or not state.open:
            self._pool.resume()
            return _LOOK_EVERY_S
        self._pool.pause(f"version {state.update.version} of the model is being loaded")
        if await self._shared.lead(model, state.update.id, self._who):
            await self._load(state.update)
            self._pool.resume()
            self._broker.publish_hint(Outgoing(CONTROL.name, "", b"", persistent=False))
        return _LOOK_OPEN_S

    async def _load(self, update: PolicyUpdate) -> None:
        """Have every endpoint load it, staying the leader meanwhile; say what came of it."""
        model, error = self._config.name, ""
        log.info("policy update", extra={"model": model, "version": update.version})
        leading = asyncio.create_task(self._keep_leading(update))
        try:
            await update_policy(
                self._config, version=update.version, path=update.path, mode=update.mode
            )
        except PolicyUpdateFailed as e:
            error = str(e)
            log.error("policy update failed", extra={"model": model, "why": error})
        finally:
            leading.cancel()
            await asyncio.wait([leading])
        await self._shared.settle(model, update, error)

    async def _keep_leading(self, update: PolicyUpdate) -> None:
        while True:
            await asyncio.sleep(LEAD_S)
            with contextlib.suppress(JournalUnavailable):
                await self._shared.lead(self._config.name, update.id, self._who)


def _telling(watches: Sequence[PolicyWatch]) -> Callable[[Delivery], None]:
    def on_hint(delivery: Delivery) -> None:
        delivery.ack()
        for watch in watches:
            watch.hint()

    return on_hint
