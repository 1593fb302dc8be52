"""Sticky sessions: one tool worker keeps the live object; without it the rollout starts again."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from broker.base import QueueDepth
from broker.memory import MemoryBroker
from broker.messages import ModelCall
from tests.support.rig import Rig, tool_call, trajectory_of
from tests.support.tool_rig import ToolRig, whole_rig
from warren import Environment, Rollout
from workers.sessions import Address, while_alive
from workers.spec import Item
from workers.tool.worker import ToolWorker


class Register:
    """A live object that no other process could have."""

    def __init__(self) -> None:
        self.total = 0
        self.closed = False


class World:
    """An environment whose sessions the test can see."""

    def __init__(self, *, blind: bool = False, **options: Any) -> None:
        """`blind`: it is scored without a look at its session."""
        self.opened: list[Register] = []
        env = self.env = Environment("till")

        @env.session(**options)
        async def register() -> AsyncIterator[Register]:
            live = Register()
            self.opened.append(live)
            yield live
            live.closed = True

        @env.tool
        async def add(session: Register, n: int) -> str:
            """Add to the register."""
            session.total += n
            return str(session.total)

        def right(rollout: Rollout, session: Register) -> float:
            return float(session.total == 6)

        env.reward((lambda rollout: 1.0) if blind else right)

    @property
    def closed(self) -> bool:
        return all(each.closed for each in self.opened)


def three_steps(items: list[Item], _: ModelCall) -> list[Item] | str:
    """Adds 1, 2 and 3, one call each."""
    done = sum(item.get("type") == "function_call_output" for item in items)
    if done == 3:
        return "done"
    return [tool_call("add", f"c{done}", n=done + 1)]


async def until_closed(world: World) -> None:
    async with asyncio.timeout(10):
        while not world.closed:  # noqa: ASYNC110 - the object is the user's, it has no event
            await asyncio.sleep(0.01)


async def until_forgotten(*workers: ToolWorker) -> None:
    """The object says that it is closed before its context is left, so before it is forgotten."""
    async with asyncio.timeout(10):
        while any(len(worker.sessions) for worker in workers):  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.01)


async def test_tools_and_rewards_work_on_one_live_object_that_is_closed_after_the_verdict() -> None:
    world = World()
    async with (
        ToolRig(world.env.spec(), three_steps) as rig,
        rig.tool_worker() as one,
        rig.tool_worker() as other,
        rig.agent(),
        rig.verifier(),
    ):
        await rig.submit(*range(10))
        results = await rig.wait(10)
        assert [r.verdict.reward for r in results] == [1.0] * 10
        assert len(world.opened) == 10
        await until_closed(world)
        await until_forgotten(one, other)


async def test_a_rollout_whose_session_ends_starts_again_and_gets_the_same_reward() -> None:
    world = World()
    half_way, go_on = asyncio.Event(), asyncio.Event()

    async def model(items: list[Item], call: ModelCall) -> list[Item] | str:
        answer = three_steps(items, call)
        if "c1" in str(items[-1]) and not half_way.is_set():
            half_way.set()
            await go_on.wait()
        return answer

    async with ToolRig(world.env.spec(), model) as rig, rig.agent(), rig.verifier():
        async with rig.tool_worker():
            await rig.submit(0)
            await half_way.wait()
        async with rig.tool_worker():
            go_on.set()
            [result] = await rig.wait(1)
        assert result.verdict.reward == 1.0
        assert trajectory_of(result).attempt == 2
        assert [each.total for each in world.opened] == [3, 6]


async def test_a_session_that_ends_before_the_verdict_is_never_scored_on_a_blank_one() -> None:
    world = World()
    async with ToolRig(world.env.spec(), three_steps) as rig, rig.agent():
        async with rig.tool_worker():
            await rig.submit(0)
            await _until_scored_next(rig)
        async with rig.tool_worker(), rig.verifier():
            [result] = await rig.wait(1)
        assert result.verdict.reward == 1.0
        assert trajectory_of(result).attempt == 2


async def test_a_session_lost_before_the_third_verdict_leaves_a_failed_row_without_a_digest() -> (
    None
):
    world = World()
    async with ToolRig(world.env.spec(), three_steps) as rig, rig.agent():
        for attempt in (1, 2, 3):
            async with rig.tool_worker():
                if attempt == 1:
                    await rig.submit(0)
                await _until_scored_next(rig)
            async with rig.verifier():
                if attempt < 3:
                    await _until_waits(rig, "warren.q.v1.tool.till")  # the next attempt's set-up
                else:
                    [result] = await rig.wait(1)
    trajectory = trajectory_of(result)
    assert (trajectory.status, trajectory.attempt) == ("failed", 3)
    assert trajectory.error is not None
    assert trajectory.calls
    assert trajectory.digest == b""  # it is of a rollout that was completed


async def _until_scored_next(rig: Rig) -> None:
    await _until_waits(rig, "warren.q.v1.verify.till")


async def _until_waits(rig: Rig, queue: str) -> None:
    async with asyncio.timeout(10):
        while True:
            depth = await rig.node.depth(queue)
            if depth is not None and depth.ready:
                return
            await asyncio.sleep(0.01)


async def test_after_three_lost_sessions_the_rollout_has_failed() -> None:
    world = World(lease_s=0.05)

    async def slow(items: list[Item], call: ModelCall) -> list[Item] | str:
        await asyncio.sleep(0.3)  # longer than the lease
        return three_steps(items, call)

    async with whole_rig(world.env.spec(), slow) as rig:
        await rig.submit(0)
        [result] = await rig.wait(1)
        trajectory = trajectory_of(result)
        assert trajectory.status == "failed"
        assert trajectory.attempt == 3
        assert trajectory.error is not None
        assert trajectory.error.kind == "infra"
        assert "session was lost in 3 attempts" in trajectory.error.message
        assert result.verdict.reward is None
        await until_closed(world)


async def test_an_agent_that_swallows_the_loss_is_not_believed() -> None:
    world = World(blind=True, lease_s=0.05)

    @world.env.agent
    async def stubborn(ctx: Any, task: Any) -> None:
        await asyncio.sleep(0.3)
        try:
            await ctx.tool("add", {"n": 1})
        except Exception:
            return

    async with whole_rig(world.env.spec(), three_steps) as rig:
        await rig.submit(0)
        [result] = await rig.wait(1)
        assert trajectory_of(result).status == "failed"


@pytest.mark.parametrize("raised", [OSError, KeyboardInterrupt, SystemExit])
async def test_a_session_that_can_not_be_opened_fails_its_rollout_with_the_reason(
    raised: type[BaseException],
) -> None:
    env = Environment("till")

    @env.session
    async def broken() -> AsyncIterator[None]:
        raise raised("no display")
        yield

    async with whole_rig(env.spec(), three_steps) as rig:
        await rig.submit(0)
        [result] = await rig.wait(1)
    error = trajectory_of(result).error
    assert error is not None
    assert "no display" in error.message


async def test_what_a_reward_beside_the_session_raises_is_a_null_reward_that_names_it() -> None:
    world = World()

    @world.env.reward
    def broken(rollout: Rollout, session: Register) -> float:
        raise KeyError("nothing")

    async with whole_rig(world.env.spec(), three_steps) as rig:
        await rig.submit(0)
        [result] = await rig.wait(1)
        assert result.verdict.reward is None
        assert result.verdict.error is not None
        assert "reward 'broken': KeyError" in result.verdict.error.message
        await until_closed(world)


def test_mistakes_about_sessions_are_named_at_load() -> None:
    def session(env: Environment) -> None:
        @env.session
        async def live() -> AsyncIterator[int]:
            yield 1

    with pytest.raises(Exception, match=r"`yield` the live object once"):

        @Environment("a").session
        def plain() -> int:
            return 1

    env = Environment("b")

    @env.tool
    def orphan(session: int) -> str:
        return ""

    with pytest.raises(Exception, match=r"there is no @env.session"):
        env.spec()
    env = Environment("c")
    session(env)
    with pytest.raises(Exception, match=r"there is an @env.session already"):
        session(env)

    @env.tool(isolated=True)
    def far(session: int) -> str:
        return ""

    with pytest.raises(Exception, match="it can't be isolated"):
        env.spec()


async def test_the_broker_is_not_asked_for_the_session_of_a_call_that_is_answered_soon() -> None:
    class Asked(MemoryBroker):
        asked = 0

        async def depth(self, queue: str) -> QueueDepth | None:
            self.asked += 1
            return await super().depth(queue)

    async def answer() -> bytes:
        await asyncio.sleep(0)
        return b"42"

    broker = Asked()
    address = Address(worker="w", boot="b", session="s", lease_s=60.0)
    assert await while_alive(broker, address, answer()) == b"42"
    assert broker.asked == 0
