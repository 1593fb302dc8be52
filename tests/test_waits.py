"""Queues' deadlines: what nobody begins on in time fails in words; what has begun goes on."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from broker import codec
from broker.base import Outgoing, QueueDepth
from broker.messages import Limits, ModelCall, Trajectory, Waits
from broker.serve import Source
from broker.topology import VERIFY, dead_queue, kept_queue, model_queue, task_queue, verify_queue
from sinks.roles import settle_dead_letters
from tests.support.hand import until
from tests.support.rig import Rig, message, tool_call, trajectory_of
from workers.executor import Executor
from workers.spec import EnvironmentSpec, Item, RewardSpec, Rollout

SHORT_S = 0.3
#: Long enough to begin within it on any machine.
AMPLE_S = 1.5


async def _one(rollout: Rollout, ctx: object) -> float:
    return 1.0


SPEC = EnvironmentSpec(name="env", rewards=[RewardSpec("one", 1.0, _one)])


def limits(**waits: float) -> Limits:
    return Limits(max_steps=10, timeout_s=60.0, call_timeout_s=60.0, waits=Waits(**waits))


def says_done(items: list[Item], call: ModelCall) -> list[Item]:
    return [message("done")]


class Slow:
    """A model that answers when it is told to."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.answers = asyncio.Event()

    async def __call__(self, items: list[Item], call: ModelCall) -> str:
        self.asked.set()
        await self.answers.wait()
        return "done"


@asynccontextmanager
async def settling(rig: Rig) -> AsyncIterator[None]:
    """A collector's care for dead letters."""
    broker, stop = rig.node.connect(), asyncio.Event()
    queues = [task_queue("resume", "env"), verify_queue("env"), dead_queue(), kept_queue()]
    await broker.declare(queues)
    settler = asyncio.create_task(settle_dead_letters(broker, rig.journal, stop=stop))
    yield
    stop.set()
    await settler
    await broker.close()


async def has_passed(seconds: float) -> None:
    """A deadline that was set before this was called is over."""
    await asyncio.sleep(seconds + 0.05)


async def test_a_task_that_no_agent_takes_in_time_is_a_failed_row_without_any_agent() -> None:
    async with Rig(SPEC, says_done) as rig, rig.verifier(), settling(rig):
        await rig.submit(0, limits=limits(task_s=SHORT_S))
        result = (await rig.wait(1))[0]
        depth = await rig.node.depth(task_queue("normal", "env").name)
    error = trajectory_of(result).error
    assert error is not None
    assert error.kind == "infra"
    assert error.message == "waited longer than 0.3 s in its task queue (--task-wait)"
    assert result.verdict.reward is None
    assert depth is not None
    assert depth.ready == 0


async def test_a_task_that_an_agent_takes_too_late_is_a_failed_row() -> None:
    """It lay behind one without a deadline, so that its queue did not look at it."""
    async with Rig(SPEC, says_done) as rig, rig.verifier(), settling(rig):
        await rig.submit(0)
        await rig.submit(1, limits=limits(task_s=SHORT_S))
        await has_passed(SHORT_S)
        async with rig.agent():
            results = await rig.wait(2)
    ended = {r.task_index: trajectory_of(r) for r in results}
    assert ended[0].status == "completed"
    assert ended[1].status == "failed"
    assert "--task-wait" in str(ended[1].error)
    assert list(rig.calls.values()) == [1], "the late one must cost nothing"


async def test_a_rollout_that_has_begun_in_time_goes_on_however_late_it_comes_back() -> None:
    model = Slow()
    async with Rig(SPEC, model) as rig, rig.verifier(), settling(rig):
        await rig.submit(0, limits=limits(task_s=AMPLE_S))
        async with rig.agent():
            await model.asked.wait()
            await has_passed(AMPLE_S)
        model.answers.set()
        async with rig.agent():
            result = (await rig.wait(1))[0]
        kept = await rig.node.depth(kept_queue().name)
    assert trajectory_of(result).status == "completed"
    assert set(rig.calls.values()) == {1}
    assert kept == QueueDepth(ready=0, consumers=0)


async def test_a_call_that_no_gateway_begins_in_time_fails_its_rollout() -> None:
    rig = Rig(SPEC, says_done)
    rig.executes = False
    async with rig, rig.agent(), rig.verifier():
        await rig.submit(0, limits=limits(model_s=SHORT_S))
        trajectory = trajectory_of((await rig.wait(1))[0])
    assert trajectory.status == "failed"
    assert "waited longer than 0.3 s in its model queue (--model-wait)" in str(trajectory.error)


async def test_a_call_that_was_begun_in_time_is_waited_for() -> None:
    model = Slow()
    async with Rig(SPEC, model) as rig, rig.agent(), rig.verifier():
        await rig.submit(0, limits=limits(model_s=AMPLE_S))
        await model.asked.wait()
        await has_passed(AMPLE_S + SHORT_S)  # and whoever looks has looked
        model.answers.set()
        trajectory = trajectory_of((await rig.wait(1))[0])
    assert trajectory.status == "completed"
    assert set(rig.calls.values()) == {1}


async def test_a_tool_call_that_nobody_begins_in_time_is_told_to_the_model() -> None:
    def model(items: list[Item], call: ModelCall) -> list[Item]:
        if items[-1].get("type") == "function_call_output":
            return [message(str(items[-1]["output"]))]
        return [tool_call("double", x=21)]

    rig = Rig(SPEC, model)
    rig.executes = False
    async with rig, rig.agent(), rig.verifier():
        broker = rig.node.connect()
        handle = rig.model_handler(Executor(broker, rig.journal))
        source = Source(model_queue("normal", "m"), 9, handle, "model")
        async with rig.process(broker, [source]):
            await rig.submit(0, limits=limits(tool_s=SHORT_S))
            trajectory = trajectory_of((await rig.wait(1))[0])
    assert trajectory.status == "completed"
    assert b"waited longer than 0.3 s in its tool queue" in b"".join(trajectory.calls)


@pytest.mark.parametrize("verifiers", [0, 1])
async def test_a_rollout_that_no_verifier_takes_in_time_is_a_failed_row_that_carries_it(
    verifiers: int,
) -> None:
    async with Rig(SPEC, says_done) as rig, settling(rig):
        trajectories = Trajectory(task=b"", rollout="other", epoch="", attempt=1, status="failed")
        if verifiers:  # something without a deadline stands before it
            body = codec.encode(trajectories)
            kind = codec.kind_of(Trajectory)
            await rig.node.publish(Outgoing(VERIFY.name, "env", body, kind))
        async with rig.agent():
            await rig.submit(0, limits=limits(verify_s=SHORT_S))
            await until(lambda: _published(rig, verifiers))
        await has_passed(SHORT_S)
        if verifiers:
            async with rig.verifier():
                result = (await rig.wait(1))[0]
        else:
            result = (await rig.wait(1))[0]
    assert result.verdict.reward is None
    assert "its verify queue (--verify-wait)" in str(result.verdict.error)
    assert trajectory_of(result).status == "completed"
    assert len(trajectory_of(result).calls) == 1


async def _published(rig: Rig, before: int) -> bool:
    """Whether the trajectory is with the verifiers, or was and has expired."""
    depth = await rig.node.depth(verify_queue("env").name)
    return bool(rig.results) or (depth is not None and depth.ready > before)


async def test_a_verification_that_has_begun_in_time_goes_on_however_late_it_comes_back() -> None:
    begun, goes_on = asyncio.Event(), asyncio.Event()

    async def slow(rollout: Rollout, ctx: object) -> float:
        begun.set()
        await goes_on.wait()
        return 0.5

    spec = EnvironmentSpec(name="env", rewards=[RewardSpec("slow", 1.0, slow)])
    async with Rig(spec, says_done) as rig, settling(rig), rig.agent():
        await rig.submit(0, limits=limits(verify_s=AMPLE_S))
        async with rig.verifier():
            await begun.wait()
            await has_passed(AMPLE_S)
        goes_on.set()
        async with rig.verifier():
            result = (await rig.wait(1))[0]
    assert result.verdict.reward == 0.5
