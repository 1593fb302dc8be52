"""The tool worker: each call becomes a result for the model, stored before anybody hears of it.

A call runs in this process; in a process of its own if its tool asks for that, if its worker died
the last time it ran, or once too many of its environment's threads are lost.
"""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Final

from broker import codec
from broker.base import Delivery
from broker.journal.base import Go
from broker.messages import Failure, ToolCall, ToolResult
from broker.serve import Dead, Outcome, Source
from broker.topology import tool_queue
from workers.executor import Done, Executor
from workers.spec import EnvironmentSpec, ToolSpec
from workers.tool.isolation import CHILD, Isolation
from workers.tool.running import IN_DOUBT, Job, Performed, perform

log = logging.getLogger(__name__)

#: A worker with this many functions that never return asks to be restarted.
MAX_LOST: Final = 8
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
        self.unhealthy = unhealthy or asyncio.Event()
        """Set when too many functions never returned: stop, let a supervisor start a new one."""
        self._environments = environments
        self._executor = executor
        self._max_lost = max_lost
        self._lost_tasks = 0
        self._isolations = {
            name: Isolation(spec, child) for name, spec in environments.items() if spec.reference
        }

    def sources(self, prefetch: int) -> list[Source]:
        """The queues to serve: one per environment."""
        return [
            Source(tool_queue(name), prefetch, self.handle, "tool") for name in self._environments
        ]

    @property
    def lost(self) -> int:
        """How many functions run on though their calls have failed."""
        threads = {id(spec.threads): spec.threads for spec in self._environments.values()}
        return self._lost_tasks + sum(each.lost for each in threads.values())

    async def handle(self, delivery: Delivery) -> Outcome:
        """Execute one ToolCall."""
        call = codec.decode(ToolCall, delivery.body, delivery.kind)
        spec = self._environments.get(call.environment)
        if spec is None:
            return Dead(f"no environment {call.environment!r} here; known: {self._known()}")
        return await self._executor.execute(call, lambda go: self._work(spec, call, go))

    async def close(self) -> None:
        """End the processes that isolated calls ran in."""
        for isolation in self._isolations.values():
            await isolation.close()

    async def _work(self, spec: EnvironmentSpec, call: ToolCall, go: Go) -> Done:
        tool = spec.tools.get(call.name)
        if go.starts > 1 and tool is not None and tool.effect == "at_most_once":
            output = f"An earlier try of {call.name} was interrupted. What it does {IN_DOUBT}"
            return Done(codec.pack(ToolResult(output=output, in_doubt=True)))
        performed = await self._perform(spec, tool, _job(spec, tool, call, go), go.starts)
        self._watch_losses(call, performed)
        return Done(codec.pack(performed.result), performed.state)

    async def _perform(
        self, spec: EnvironmentSpec, tool: ToolSpec | None, job: Job, starts: int
    ) -> Performed:
        isolation = self._isolations.get(spec.name)
        wanted = tool is not None and tool.isolated
        if isolation is not None and (wanted or starts > 1 or self.lost >= self._max_lost):
            return await isolation.perform(job)
        if wanted:
            return _refused(job, "is isolated, but its environment can't be loaded from a file")
        if starts > MAX_STARTS:
            return _refused(job, f"killed its worker {starts - 1} times")
        return await perform(spec, job)

    def _watch_losses(self, call: ToolCall, performed: Performed) -> None:
        self._lost_tasks += performed.lost
        lost = self.lost
        if lost:
            log.error(
                "user code never returned",
                extra={"environment": call.environment, "tool": call.name, "lost": lost},
            )
        if lost >= self._max_lost:
            self.unhealthy.set()

    def _known(self) -> str:
        return ", ".join(sorted(self._environments))


def _job(spec: EnvironmentSpec, tool: ToolSpec | None, call: ToolCall, go: Go) -> Job:
    if tool is not None:
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
