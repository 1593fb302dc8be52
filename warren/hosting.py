"""Puts workers into a process: the one place where each kind is constructed.

`collect` hosts all kinds at once, `warren worker KIND` one; both serve what its opener yields.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from broker.names import new_worker_id
from broker.parting import parting
from broker.serve import Source
from broker.topology import (
    LANES,
    Lane,
    QueueSpec,
    ladder_queues,
    model_queue,
    session_queue,
)
from warren.connections import Connections
from warren.models import model_of
from warren.sandboxing import is_unsafe
from workers.inbox import Inbox
from workers.model_gateway.config import ModelConfig
from workers.spec import EnvironmentSpec

if TYPE_CHECKING:
    from broker.metrics import EndpointFigures, Metrics
    from workers.agent.worker import AgentWorker
    from workers.isolation import Isolation
    from workers.model_gateway.gateway import ModelGateway


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the workers of a process are given."""

    environments: Mapping[str, EnvironmentSpec]
    models: Mapping[str, ModelConfig] = field(default_factory=dict)
    """Empty for a gateway that only serves the environments' scripted policies."""
    agent_slots: int = 64
    tool_prefetch: int = 64
    model_prefetch: int = 256
    verifier_prefetch: int = 64
    renew_after_s: float = 600.0
    lanes: Sequence[Lane] = LANES
    metrics: "Metrics | None" = None
    """Where a gateway shows how its endpoints stand."""
    unhealthy: asyncio.Event = field(default_factory=asyncio.Event)
    """Set by a worker that a new process should take the place of."""


@asynccontextmanager
async def open_agent(at: Connections, plan: Plan) -> AsyncGenerator[list[Source], None]:
    """An agent worker; it is the owner of the rollouts that it runs."""
    async with agent_worker(at, plan) as worker:
        yield worker.sources()


@asynccontextmanager
async def agent_worker(at: Connections, plan: Plan) -> AsyncGenerator["AgentWorker", None]:
    """An agent worker that is reachable, for whoever serves its sources."""
    from workers.agent.worker import AgentSettings, AgentWorker

    inbox = Inbox(at.broker, at.journal, new_worker_id("agent"))
    settings = AgentSettings(
        slots=plan.agent_slots, renew_after_s=plan.renew_after_s, lanes=plan.lanes
    )
    worker = AgentWorker(
        at.broker, at.journal, at.runs, inbox, plan.environments, settings, at.shared
    )
    await at.broker.declare(ladder_queues("task"))
    async with inbox.open(), worker.open():
        yield worker


@asynccontextmanager
async def open_verifier(at: Connections, plan: Plan) -> AsyncGenerator[list[Source], None]:
    """A verifier worker; it is the owner of its judge calls."""
    from workers.verifier.worker import VerifierWorker

    inbox = Inbox(at.broker, at.journal, new_worker_id("verifier"))
    worker = VerifierWorker(
        at.broker,
        at.journal,
        inbox,
        plan.environments,
        prefetch=plan.verifier_prefetch,
        unhealthy=plan.unhealthy,
        child=_child(),
    )
    await at.broker.declare([*ladder_queues("verify"), *_judge_queues(plan)])
    try:
        async with inbox.open():
            yield worker.sources()
    finally:
        await worker.close()


def _judge_queues(plan: Plan) -> list[QueueSpec]:
    """So that a judge whose gateway comes later is waited for."""
    specs = plan.environments.values()
    judges = {model_of(spec.judge_model, spec.name) for spec in specs if spec.judge_model}
    return [model_queue(lane, judge) for judge in sorted(judges) for lane in LANES]


@asynccontextmanager
async def open_tool(at: Connections, plan: Plan) -> AsyncGenerator[list[Source], None]:
    """A tool worker."""
    from workers.executor import Executor
    from workers.tool.worker import ToolWorker

    executor = Executor(at.broker, at.journal)
    worker = ToolWorker(
        plan.environments,
        executor,
        unhealthy=plan.unhealthy,
        child=_child(),
    )
    await at.broker.declare(ladder_queues("tool"))
    try:
        async with executor.open():
            yield worker.sources(plan.tool_prefetch)
    finally:
        # so that its rollouts learn at once that their sessions end
        await parting(at.broker.delete(session_queue(worker.sessions.worker_id).name))
        await worker.close()


def isolation_of(spec: EnvironmentSpec) -> "Isolation | None":
    """Processes of its own for its user code; None where no other process could load it."""
    from workers.isolation import Isolation

    return Isolation(spec.reference, _child()) if spec.reference else None


def _child() -> Sequence[str]:
    """The program that isolated user code runs in, with this process's mind about sandboxes."""
    from workers.isolation import CHILD

    return (*CHILD, *(("--unsafe-no-sandbox",) if is_unsafe() else ()))


@asynccontextmanager
async def open_model(at: Connections, plan: Plan) -> AsyncGenerator[list[Source], None]:
    """A model gateway."""
    from workers.model_gateway.opening import open_gateway

    await at.broker.declare(ladder_queues("model"))
    async with open_gateway(
        plan.models,
        plan.environments,
        at.broker,
        at.journal,
        prefetch=plan.model_prefetch,
        shared=at.shared,
    ) as gateway:
        if plan.metrics is not None:
            plan.metrics.watch_endpoints(lambda: _figures(gateway))
        yield gateway.sources()


def _figures(gateway: "ModelGateway") -> "list[EndpointFigures]":
    from broker.metrics import EndpointFigures

    return [
        EndpointFigures(
            *(model, status.url, status.up, status.limit, status.in_flight),
            *(status.waiting, status.requests),
        )
        for model, endpoints in gateway.endpoints().items()
        for status in endpoints
    ]


OPENERS = {
    "agent": open_agent,
    "tool": open_tool,
    "model": open_model,
    "verifier": open_verifier,
}


@asynccontextmanager
async def open_all(at: Connections, plan: Plan) -> AsyncGenerator[list[Source], None]:
    """Every kind but the sink in this process. (Suspects: suspects.py.)"""
    async with AsyncExitStack() as stack:
        sources: list[Source] = []
        for opener in OPENERS.values():
            sources += await stack.enter_async_context(opener(at, plan))
        yield sources
