"""Runs one rollout's agent to its end, whatever that is, and says what it left.

A bad rollout is data: what the agent, its model or its tools do wrong ends in the trajectory. What
goes wrong with broker, journal or ownership is not the rollout's fault and is raised.
"""

import asyncio
import time
import traceback
from collections.abc import Awaitable, Iterator, Mapping
from typing import Any, Final

import msgspec

from broker import codec
from broker.deadlines import Deadline, Deadlines
from broker.errors import BrokerError, JournalUnavailable, TooLarge
from broker.messages import Failure, Status, Task, Trajectory
from workers.agent.calls import CallMaker, RolloutEnded
from workers.agent.context import AgentTask, Context, ModelFailed
from workers.agent.loop import tool_loop
from workers.agent.prompt import model_options, offered_tools, prompt_items
from workers.limited import described
from workers.owner import Nondeterministic, Owner, Replaced
from workers.sessions import SessionGone
from workers.spec import EnvironmentSpec

_TRACEBACK_LINES: Final = 8
_ROW: Final = msgspec.json.Decoder(dict[str, Any])
_OURS = (Replaced, SessionGone, BrokerError, JournalUnavailable)


class Watch:
    """Lets others end a running rollout from outside."""

    def __init__(self, deadlines: Deadlines) -> None:
        self.cancelled = False
        self.over_budget: Failure | None = None
        self._deadlines = deadlines
        self._deadline: Deadline | None = None

    def cancel(self) -> None:
        """Its run was cancelled: end it now."""
        self.cancelled = True
        self._end_now()

    def spent(self, why: Failure) -> None:
        """Its run has used up its budget: end it now."""
        self.over_budget = why
        self._end_now()

    def _end_now(self) -> None:
        if self._deadline is not None:
            self._deadlines.cut(self._deadline)

    @property
    def expired(self) -> bool:
        """Whether the rollout was ended by this watch."""
        return self._deadline is not None and self._deadline.expired

    async def within(self, seconds: float, work: Awaitable[object]) -> None:
        """Await `work`; TimeoutError when the time is over or the run was cancelled."""
        self._deadline = self._deadlines.within(max(seconds, 0.0))
        with self._deadline:
            if self.cancelled or self.over_budget is not None:
                self._deadlines.cut(self._deadline)
            await work


class _End(msgspec.Struct, frozen=True):
    status: Status
    error: Failure | None = None


async def run_rollout(owner: Owner, task: Task, spec: EnvironmentSpec, watch: Watch) -> Trajectory:
    """Run the environment's agent. Raises only what is not the rollout's fault."""
    try:
        row: Mapping[str, Any] = _ROW.decode(task.row)
    except msgspec.DecodeError as e:
        return failed_trajectory(owner, task, Failure(kind="agent", message=f"bad row: {e}"))
    started_at = time.time()
    offered = offered_tools(spec, row)
    prompt = prompt_items(spec, task, row)
    calls = CallMaker(
        owner, task, spec, row=task.row, tools=offered, options=model_options(task, row)
    )
    ctx = Context(calls, AgentTask(task.rollout_id, row, prompt, offered))
    end = await _settled(_agent(calls, ctx, spec), calls, task, watch)
    if calls.session_gone:
        raise SessionGone(f"the session of {task.rollout_id} has gone")
    return Trajectory(
        task=codec.pack(task),
        rollout=owner.key,
        epoch=owner.run.epoch,
        attempt=task.attempt - 1 + owner.run.attempt,
        status=end.status,
        error=end.error,
        digest=codec.sha256(
            end.status.encode(), codec.pack(end.error), task.row, calls.digest, *calls.tail
        ),
        calls=calls.records,
        main=calls.main,
        tail_items=calls.tail,
        tools=calls.tools,
        prompt_items=len(prompt),
        state=await owner.state() if spec.state is not None else b"",
        session=calls.session,
        started_at=started_at,
        finished_at=time.time(),
    )


async def _agent(calls: CallMaker, ctx: Context, spec: EnvironmentSpec) -> None:
    if spec.state is not None or spec.session is not None:
        ready = await calls.setup()
        if ready.error is not None:
            raise RolloutEnded("failed", ready.error)
    await (spec.agent or tool_loop)(ctx, ctx.task)


async def _settled(agent: Awaitable[object], calls: CallMaker, task: Task, watch: Watch) -> _End:
    """How the agent ended, in the words of a row."""
    try:
        await watch.within(calls.deadline - time.time(), agent)
    except TimeoutError as e:
        if watch.expired:
            return _out_of_time(task, watch)
        return _End("failed", _agent_failure(e))
    except asyncio.CancelledError:
        raise
    except BaseException as e:
        return _end_of(e)
    return _End("truncated" if calls.cut else "completed")


def _out_of_time(task: Task, watch: Watch) -> _End:
    if watch.cancelled:
        return _End("failed", Failure(kind="cancelled", message="the run was cancelled"))
    if watch.over_budget is not None:
        return _End("truncated", watch.over_budget)
    message = f"stopped after {task.limits.timeout_s:g} s"
    return _End("truncated", Failure(kind="budget", message=message))


def _end_of(error: BaseException) -> _End:
    """Find what happened in an exception (or a group of them); raise what is not the agent's."""
    leaves = list(_leaves(error))
    for leaf in leaves:
        if isinstance(leaf, _OURS):
            raise leaf
    for leaf in leaves:
        match leaf:
            case RolloutEnded():
                return _End(leaf.status, leaf.error)
            case ModelFailed():
                return _End("failed", leaf.failure)
            case Nondeterministic():
                return _End("failed", Failure(kind="agent", message=str(leaf), where=leaf.path))
    return _End("failed", _agent_failure(leaves[0]))


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def _agent_failure(error: BaseException) -> Failure:
    lines = traceback.format_exception(error)
    return Failure(
        kind="agent",
        message=described(error)[:4096],
        where="".join(lines[-_TRACEBACK_LINES:]).strip(),
    )


def failed_trajectory(owner: Owner, task: Task, failure: Failure) -> Trajectory:
    """A rollout that did not run at all."""
    now = time.time()
    return Trajectory(
        task=codec.pack(task),
        rollout=owner.key,
        epoch=owner.run.epoch,
        attempt=task.attempt - 1 + owner.run.attempt,
        status="failed",
        error=failure,
        started_at=now,
        finished_at=now,
    )


def too_large(trajectory: Trajectory, error: TooLarge) -> Trajectory:
    """A trajectory that no message can carry, without what makes it large."""
    return msgspec.structs.replace(
        trajectory,
        status="failed",
        error=Failure(kind="infra", message=f"trajectory too large: {error}"),
        digest=b"",
        calls=(),
        main=None,
        tail_items=(),
        state=b"",
    )
