"""One model call's life: decode, claim, ask until there is an answer or no time left, store, reply.

Every end is a result that is stored: an answer, `context_overflow` (the rollout is truncated), or
an error that says whose fault it was. What is not over yet waits in the slot or on the ladder.
"""

import asyncio
import functools
import logging
import random
import time
from collections.abc import Mapping
from typing import Final

import msgspec

from broker import codec
from broker.base import Delivery
from broker.deadlines import Deadlines
from broker.journal.base import Go
from broker.messages import ErrorKind, Failure, ModelCall, ModelResult
from broker.retries import GiveUp, PutOff, Wait, decide
from broker.serve import Outcome, Source
from broker.shared.memory import MemoryShared
from broker.topology import LANES, Lane, model_queue
from workers.executor import Done, Executor, Postponed
from workers.model_gateway.backend import (
    TERMS_KEPT,
    Backend,
    BackendRequest,
    ContextOverflow,
    Refused,
    Retryable,
    Terms,
)
from workers.model_gateway.config import ModelConfig
from workers.model_gateway.endpoint import EndpointStatus
from workers.model_gateway.pool import AllDown, EndpointPool
from workers.model_gateway.remarks import Remarks
from workers.model_gateway.spending import Spending

log = logging.getLogger(__name__)

#: Share of the prefetch that each lane may hold.
LANE_SHARE: Final[Mapping[Lane, float]] = {"resume": 1.0, "normal": 1.0, "bulk": 0.5}


#: Above it a call's tools and options are unpacked for it alone: what is kept stays small.
_LARGE_TERMS_BYTES: Final = 32 * 1024


class ModelGateway:
    """Answers the calls of its models. `handle` is what the core loop runs."""

    def __init__(
        self,
        executor: Executor,
        models: Mapping[str, tuple[ModelConfig, Backend]],
        *,
        prefetch: int = 256,
        spending: Spending | None = None,
        chance: random.Random | None = None,
    ) -> None:
        self._executor = executor
        self._models = models
        self._prefetch = prefetch
        self._spending = spending or Spending(MemoryShared())
        self._chance = chance or random.Random()
        self._deadlines = Deadlines()
        self._remarks = Remarks()

    def sources(self) -> list[Source]:
        """What to consume: each model's queue in every lane, within `prefetch` calls each."""
        return [
            Source(
                model_queue(lane, model),
                max(int(self._prefetch * LANE_SHARE[lane]), 1),
                self.handle,
                "model",
            )
            for model in self._models
            for lane in LANES
        ]

    @property
    def pools(self) -> dict[str, EndpointPool]:
        """The endpoints of each model; scripted models have none."""
        backends = {name: backend for name, (_, backend) in self._models.items()}
        return {name: pool for name, pool in backends.items() if isinstance(pool, EndpointPool)}

    def endpoints(self) -> dict[str, list[EndpointStatus]]:
        """How the endpoints of each model stand."""
        return {name: [e.status for e in pool.endpoints] for name, pool in self.pools.items()}

    async def handle(self, delivery: Delivery) -> Outcome:
        """Answer one call. Raises WireError for a message that is none, JournalUnavailable."""
        call = codec.decode(ModelCall, delivery.body, delivery.kind)
        return await self._executor.execute(call, functools.partial(self._work, call))

    async def _work(self, call: ModelCall, _: Go) -> Done | Postponed:
        served = self._models.get(call.model)
        if served is None:
            known = ", ".join(sorted(self._models))
            return _failed("model", f"this gateway has no model {call.model!r}; it has: {known}")
        config, backend = served
        request = request_of(call, config, self._remarks)
        tries, error = call.tries, None
        while True:
            left_s = call.deadline - time.time()
            try:
                with self._deadlines.within(left_s):
                    result = await backend.generate(_with_timeout(request, config, left_s))
                self._spending.add(call, result.usage)
                return _done(result, tries + 1)
            except ContextOverflow as e:
                return _overflow(call, str(e), tries + 1)
            except Refused as e:
                return _failed("model", str(e), tries + 1)
            except TimeoutError:
                return _failed("infra", _too_late(error), tries + 1)
            except Retryable as e:
                error = e
                tries += not isinstance(e, AllDown)  # nothing was sent then: no try
            match self._next(error, tries, call.deadline - time.time()):
                case Wait(delay_s):
                    await asyncio.sleep(delay_s)
                case PutOff(delay_s):
                    return Postponed(delay_s, tries - call.tries)
                case GiveUp():
                    return _failed(error.kind, f"{error} ({_in_vain(error, tries)})", tries)

    def _next(self, error: Retryable, tries: int, left_s: float) -> Wait | PutOff | GiveUp:
        return decide(
            error.patience,
            tries=max(tries, 1),
            left_s=left_s,
            asked_s=error.retry_after_s,
            chance=self._chance,
        )


def request_of(call: ModelCall, config: ModelConfig, remarks: Remarks) -> BackendRequest:
    """The call unpacked, for a backend. Raises Undecodable."""
    return BackendRequest(
        model=config.served_name or config.name,
        remarks=remarks.of(call.input),
        known_ids=call.known_ids,
        known_items=call.known_items,
        terms=terms_of(call),
        rollout=call.sticky or call.rollout,
        path=call.path,
        run=call.run,
        lane=call.lane,
        timeout_s=config.try_timeout_s,
    )


def terms_of(call: ModelCall) -> Terms:
    """Its tools and options, unpacked once for all calls that have the same. Raises Undecodable."""
    large = len(call.tools) + len(call.options) > _LARGE_TERMS_BYTES
    return (_unpacked if large else _kept)(call.tools, call.options)


def _unpacked(tools: bytes, options: bytes) -> Terms:
    return Terms(codec.unpack(tools) if tools else (), codec.unpack(options) if options else {})


_kept = functools.lru_cache(TERMS_KEPT)(_unpacked)


def _with_timeout(request: BackendRequest, config: ModelConfig, left_s: float) -> BackendRequest:
    if left_s >= config.try_timeout_s:
        return request
    return msgspec.structs.replace(request, timeout_s=max(left_s, 0.001))


def _done(result: ModelResult, tries: int) -> Done:
    if tries != result.tries:
        result = msgspec.structs.replace(result, tries=tries)
    return Done(codec.pack(result))


def _overflow(call: ModelCall, why: str, tries: int) -> Done:
    """Not an error: the conversation has become too long, which the agent ends as truncated."""
    log.info("context overflow", extra={"rollout": call.rollout, "path": call.path, "why": why})
    return _done(ModelResult(finish_reason="context_overflow"), tries)


def _too_late(error: Retryable | None) -> str:
    before = f"; the try before failed: {error}" if error else ""
    return f"no answer before the call's deadline{before}"


def _in_vain(error: Retryable, tries: int) -> str:
    told = "1 try" if tries == 1 else f"{tries} tries"
    asked_s = error.retry_after_s
    return f"{told}; it asks to wait {asked_s:g} s more" if asked_s else told


def _failed(kind: ErrorKind, why: str, tries: int = 1) -> Done:
    return _done(ModelResult(error=Failure(kind=kind, message=why)), tries)
