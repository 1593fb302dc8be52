"""One replica of a model: its slots, its health, its congestion, and who looks after it."""

import asyncio
import hashlib
import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from broker.masking import Secret
from broker.messages import ModelResult
from workers.model_gateway.backend import (
    Backend,
    BackendError,
    BackendRequest,
    Retryable,
    StaleWeights,
)
from workers.model_gateway.congestion import Congestion, EngineLoad
from workers.model_gateway.health import Health
from workers.model_gateway.masking import masked
from workers.model_gateway.slots import Slots

log = logging.getLogger(__name__)

#: A down endpoint gets one probe in this time, and at most one trial for each: under two
#: requests a second, and found again well within five.
PROBE_EVERY_S: Final = 1.2
PROBE_TIMEOUT_S: Final = 5.0
LOAD_EVERY_S: Final = 1.0


class Probed(Backend, Protocol):
    """A backend that can be looked after."""

    async def alive(self, timeout_s: float) -> bool:
        """Whether anybody answers there, at no cost."""
        ...

    async def load(self) -> EngineLoad | None:
        """What the engine says of its load; None where it says nothing, now and later."""
        ...

    @property
    def resent(self) -> int:
        """Requests sent once more, since the server had just closed their kept connection."""
        ...

    def policy_changed(self, version: int | None) -> None:
        """It may have new weights: ask it for its version again.

        With older ones than `version`, calls end as StaleWeights; None: it may have any.
        """
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


@dataclass(frozen=True, slots=True)
class EndpointStatus:
    """How an endpoint stands, for metrics and people."""

    url: str
    """Secrets masked."""
    up: bool
    why: str
    """What failed last; empty when nothing has."""
    limit: int
    """Requests that it may have in flight now."""
    in_flight: int
    waiting: int
    """Calls that wait for a slot."""
    requests: int
    """Sent since the start; those sent twice (`Probed.resent`) count as two."""


class Endpoint:
    """One base URL of one model."""

    def __init__(
        self, url: str, backend: Probed, limit: int, secrets: Sequence[Secret] = ()
    ) -> None:
        self.url = url
        self._secrets = secrets
        self.backend = backend
        self.slots = Slots(limit)
        self.health = Health()
        self.congestion = Congestion(self.slots)
        self.requests = 0
        self._went_down = asyncio.Event()
        self.stale = ""
        """Why it gets no calls although it is up: its weights are not the model's."""

    def rank(self, sticky: str) -> bytes:
        """Rendezvous hashing: whoever ranks highest serves; others keep theirs when it goes."""
        return hashlib.blake2b(f"{self.url}\0{sticky}".encode(), digest_size=8).digest()

    @property
    def status(self) -> EndpointStatus:
        """How it stands now."""
        slots, health = self.slots, self.health
        return EndpointStatus(
            url=self.url,
            up=not health.down and not self.stale,
            why=self.why,
            limit=slots.limit,
            in_flight=slots.held,
            waiting=slots.waiting,
            requests=self.requests + self.backend.resent,
        )

    @property
    def usable(self) -> bool:
        """Whether a call may be sent now."""
        return self.health.usable and not self.stale

    @property
    def why(self) -> str:
        """Why it is not usable, or what failed last."""
        return self.stale or self.health.why

    async def ask(self, request: BackendRequest, changed: Callable[[], None]) -> ModelResult:
        """Send one request, in a slot that the caller holds; learn from what comes of it."""
        self.health.sent()
        self.requests += 1
        try:
            result = await self.backend.generate(request)
        except BackendError as e:
            # wherever in it a server said its words: rows, logs and metrics repeat them
            e.args = (masked(str(e), self._secrets),)
            self._failed(e, changed)
            raise
        self._succeeded(changed, result.seconds, result.usage.generated_tokens)
        return result

    def _failed(self, e: BackendError, changed: Callable[[], None]) -> None:
        if isinstance(e, StaleWeights):
            self.stale = str(e)
            log.warning("endpoint has old weights", extra={"endpoint": self.url, "why": self.stale})
        if isinstance(e, StaleWeights) or not isinstance(e, Retryable):
            self._succeeded(changed)  # an answer, if not the one we wanted
        elif e.throttled:
            self.congestion.answered(throttled=True)
        elif not e.healthy and self.health.failed(str(e)):
            log.warning("endpoint is down", extra={"endpoint": self.url, "why": str(e)})
            self._went_down.set()
            changed()

    def _succeeded(
        self, changed: Callable[[], None], seconds: float = 0.0, tokens: int = 0
    ) -> None:
        if self.health.succeeded():
            log.info("endpoint is back", extra={"endpoint": self.url})
            self._went_down.clear()
            self.congestion.restart()
            changed()
        self.congestion.answered(throttled=False, seconds=seconds, tokens=tokens)

    async def watch(self, changed: Callable[[], None]) -> None:
        """While it is down, probe it and let single calls try. Runs until cancelled."""
        while True:
            await self._went_down.wait()
            await asyncio.sleep(PROBE_EVERY_S * random.uniform(1.0, 1.25))
            if (
                self.health.down
                and await self.backend.alive(PROBE_TIMEOUT_S)
                and self.health.down
                and self.health.open_trial()
            ):
                changed()

    async def follow_load(self) -> None:
        """Let the engine's own figures move the limit; where it gives none, its answers' times."""
        while True:
            started = time.monotonic()
            if not self.health.down:
                load = await self.backend.load()
                if load is None:
                    self.congestion.follow_latency()
                    return
                self.congestion.engine_says(load)
            await asyncio.sleep(max(LOAD_EVERY_S - (time.monotonic() - started), 0.1))
