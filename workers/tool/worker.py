"""The tool worker: each call becomes a result for the model, stored before anybody hears of it.

A call runs in this process; in a process of its own if its tool asks for that, if its worker died
the last time it ran, or once too many of its environment's threads are lost.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from broker import codec
from broker.base import Delivery
from broker.journal.base import Go
from broker.messages import Failure, ToolCall, ToolResult
from broker.names import new_worker_id
from broker.serve import Ack, Dead, Outcome, Source
from broker.topology import session_queue, tool_queue
from workers.executor import Done, Executor
from workers.isolation import CHILD, Isolation
from workers.losses import MAX_LOST, Losses
from workers.sessions import Address, SessionGone
from workers.spec import EnvironmentSpec, ToolSpec
from workers.tool.isolated import perform_isolated
from workers.tool.judging import reward_result
from workers.tool.running import IN_DOUBT, Job, Performed, perform, raised, row_of
from workers.tool.sessions import Sessions

#: A call that can't be isolated is begun this often: each time its worker died.
MAX_STARTS: Final = 3


class ToolWorker:
    """Runs tool calls of these environments, as many at once as are delivered."""

    def __init__(
        self,
        environments: Mapping[str, EnvironmentSpec],
        executor: Executor,
        *,
        max_lost: int = MAX_LOST,
        unhealthy: asyncio.Event | None = None,
        child: Sequence[str] = CHILD,
    ) -> None:
        self.losses = Losses(environments, limit=max_lost, unhealthy=unhealthy)
        self.sessions = Sessions(new_worker_id("tool"))
        self._environments = environments
        self._executor = executor
        self._isolations = {
            name: Isolation(spec.reference, child)
            for name, spec in environments.items()
            if spec.reference
        }

    def sources(self, prefetch: int) -> list[Source]:
        """The queues to serve: one per environment, and our own where sessions live here."""
        queues = [tool_queue(name) for name in self._environments]
        if any(spec.session is not None for spec in self._environments.values()):
            queues.append(session_queue(self.sessions.worker_id))
        return [Source(queue, prefetch, self.handle, "tool") for queue in queues]

    async def handle(self, delivery: Delivery) -> Outcome:
        """Execute one ToolCall."""
        call = codec.decode(ToolCall, delivery.body, delivery.kind)
        spec = self._environments.get(call.environment)
        if spec is None:
            return Dead(f"no environment {call.environment!r} here; known: {self._known()}")
        if call.action == "close":
            await self.sessions.close(codec.read(Address, call.session))
            return Ack()
        return await self._executor.execute(call, lambda go: self._work(spec, call, go))

    async def close(self) -> None:
        """End all sessions, and the processes that isolated calls ran in."""
        await self.sessions.close_all()
        for isolation in self._isolations.values():
            await isolation.close()

    async def _work(self, spec: EnvironmentSpec, call: ToolCall, go: Go) -> Done:
        tool = spec.tools.get(call.name)
        if go.starts > 1 and tool is not None and tool.effect == "at_most_once":
            output = f"An earlier try of {call.name} was interrupted. What it does {IN_DOUBT}"
            return Done(codec.pack(ToolResult(output=output, in_doubt=True)))
        try:
            performed = await self._in_its_place(spec, tool, call, go)
        except SessionGone as e:
            failure = Failure(kind="infra", message=str(e))
            return Done(codec.pack(ToolResult(error=failure, session_gone=True)))
        self.losses.watch(
            spec.name, call.name or "setup", overdue=performed.overdue, lost=performed.lost
        )
        return Done(codec.pack(performed.result), performed.state)

    async def _in_its_place(
        self, spec: EnvironmentSpec, tool: ToolSpec | None, call: ToolCall, go: Go
    ) -> Performed:
        """Run it where its session is, else wherever that is safe."""
        job = _job(spec, tool, call, go)
        if spec.session is None:
            return await self._perform(spec, tool, job, go.starts)
        if go.starts > MAX_STARTS:
            return _refused(job, f"killed its worker {go.starts - 1} times")
        if not call.session and not job.tool:
            return await self._set_up(spec, job)
        if not call.session:
            raise SessionGone("the rollout has no session: its setup has not run")
        with self.sessions.use(codec.read(Address, call.session)) as live:
            if call.action == "reward":
                return await reward_result(spec, call, job.timeout_s, live)
            return await perform(spec, job, live)

    async def _set_up(self, spec: EnvironmentSpec, job: Job) -> Performed:
        """The state, if there is one, then the session."""
        performed = await perform(spec, job)
        if spec.session is None or performed.result.error is not None:
            return performed
        try:
            address = await self.sessions.open(spec.session, row_of(job.row), spec.name)
        except TimeoutError:
            return _refused(job, f"did not open its session within {spec.session.timeout_s:g} s")
        except Exception as e:  # the border to user code
            return Performed(result=raised(e, None))
        result = msgspec.structs.replace(performed.result, session=codec.pack(address))
        return msgspec.structs.replace(performed, result=result)

    async def _perform(
        self, spec: EnvironmentSpec, tool: ToolSpec | None, job: Job, starts: int
    ) -> Performed:
        isolation = self._isolations.get(spec.name)
        wanted = tool is not None and tool.isolated
        if isolation is not None and (wanted or starts > 1 or self.losses.too_many):
            return await perform_isolated(isolation, spec, job)
        if wanted:
            return _refused(job, "is isolated, but its environment can't be loaded from a file")
        if starts > MAX_STARTS:
            return _refused(job, f"killed its worker {starts - 1} times")
        return await perform(spec, job)

    def _known(self) -> str:
        return ", ".join(sorted(self._environments))


def _job(spec: EnvironmentSpec, tool: ToolSpec | None, call: ToolCall, go: Go) -> Job:
    if call.action == "reward":
        timeout_s = call.deadline - time.time()
    elif tool is not None:
        timeout_s = tool.timeout_s
    else:
        timeout_s = spec.state.timeout_s if spec.state is not None else 1.0
    return Job(
        tool=call.name,
        arguments=call.arguments,
        idempotency_key=f"{call.rollout}/{call.epoch}/{call.path}",
        timeout_s=max(0.0, min(timeout_s, call.deadline - time.time())),
        row=bytes(call.row),
        state=bytes(go.state),
    )


def _refused(job: Job, reason: str) -> Performed:
    message = f"{job.tool or 'setup'} {reason}"
    failure = Failure(kind="tool", message=message, where=job.tool or "setup")
    return Performed(result=ToolResult(output=f"Error: {message}", error=failure))
