"""What a lost journal means for tools that must not act twice, and for state only it had."""

import asyncio

from broker.journal.memory import MemoryTable
from broker.messages import Limits, ModelCall
from broker.topology import tool_queue
from tests.support.rig import tool_call, trajectory_of
from tests.support.tool_rig import ToolRig, whole_rig
from tests.support.virtual_time import VirtualTimeLoop
from warren import Environment, Rollout
from workers.spec import Item


async def test_an_at_most_once_call_is_in_doubt_after_the_journal_was_lost() -> None:
    acted: list[str] = []
    acting = asyncio.Event()
    env = Environment("mail")

    @env.tool(effect="at_most_once")
    async def send() -> str:
        acted.append("sent")
        acting.set()
        await asyncio.sleep(60)  # its worker dies before it can say so
        return "sent"

    def model(items: list[Item], _: ModelCall) -> list[Item] | str:
        answered = items[-1].get("type") == "function_call_output"
        return str(items[-1]["output"]) if answered else [tool_call("send")]

    async with ToolRig(env.spec(), model) as rig, rig.agent(), rig.verifier():
        async with rig.tool_worker():
            await rig.submit(0)
            await asyncio.wait_for(acting.wait(), 10)
            rig.journal.table.restore(MemoryTable())
        async with rig.tool_worker():
            [result] = await rig.wait(1)
    assert acted == ["sent"]
    assert "may or may not have happened" in str(trajectory_of(result))


def test_an_at_most_once_call_is_in_doubt_though_its_worker_died_with_the_broker() -> None:
    """No message of it is left, and its owner publishes it again under another name."""
    acted: list[str] = []
    env = Environment("mail")

    async def scenario() -> None:
        acting = asyncio.Event()

        @env.tool(effect="at_most_once")
        async def send() -> str:
            acted.append("sent")
            acting.set()
            await asyncio.Event().wait()
            return "sent"

        def model(items: list[Item], _: ModelCall) -> list[Item] | str:
            answered = items[-1].get("type") == "function_call_output"
            return str(items[-1]["output"]) if answered else [tool_call("send")]

        limits = Limits(max_steps=9, timeout_s=3600.0, call_timeout_s=1200.0)
        async with ToolRig(env.spec(), model) as rig, rig.agent() as agent, rig.verifier():
            async with rig.tool_worker():
                await rig.submit(0, limits=limits)
                await acting.wait()
            await rig.node.delete(tool_queue("mail").name)
            agent._broker.break_connection()  # type: ignore[attr-defined]
            async with rig.tool_worker():
                [result] = await rig.wait(1, 60.0)
        assert "may or may not have happened" in str(trajectory_of(result))

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(scenario())
    assert acted == ["sent"]


async def test_a_stateful_rollout_starts_again_when_the_journal_lost_its_state() -> None:
    env = Environment("tally")
    flushed = asyncio.Event()
    half_way = asyncio.Event()

    @env.setup
    def tally() -> dict[str, int]:
        return {"total": 0}

    @env.tool
    async def add(state: dict[str, int], n: int) -> int:
        state["total"] += n
        return state["total"]

    @env.reward
    def right(rollout: Rollout) -> float:
        return float(rollout.state == {"total": 3})

    async def model(items: list[Item], _: ModelCall) -> list[Item] | str:
        done = sum(item.get("type") == "function_call_output" for item in items)
        if done == 1:
            half_way.set()
            await flushed.wait()
        return "done" if done == 2 else [tool_call("add", f"c{done}", n=done + 1)]

    async with whole_rig(env.spec(), model) as rig:
        await rig.submit(0)
        await asyncio.wait_for(half_way.wait(), 10)
        rig.journal.table.restore(MemoryTable())
        flushed.set()
        [result] = await rig.wait(1)
    assert result.verdict.reward == 1.0
