"""The agent worker over the embedded broker: one trajectory per task, whatever happens."""

import asyncio
from typing import Any

import pytest

from broker import codec
from broker.base import Outgoing
from broker.journal.memory import MemoryTable
from broker.journal.runs import RunInfo
from broker.messages import CallRecord, Failure, Limits, ModelCall, ModelResult, Task
from broker.topology import TASK, dead_queue, task_key
from broker.trajectory import forest, main_transcript
from sinks.rows import row_of
from tests.support.rig import Rig, message, tool_call, trajectory_of
from workers.agent.context import AgentTask, Context
from workers.agent.conversation import Conversation
from workers.spec import EnvironmentSpec, Item, RewardSpec, Rollout


async def _one(rollout: Rollout, ctx: object) -> float:
    return 1.0 if rollout.answer else 0.0


REWARD = RewardSpec("answered", 1.0, _one)
SPEC = EnvironmentSpec(name="env", system_prompt="be good", rewards=[REWARD])


def uses_a_tool_once(items: list[Item], call: ModelCall) -> list[Item]:
    if any(item.get("type") == "function_call_output" for item in items):
        return [message("done")]
    return [tool_call("double", x=21)]


TOOLS = {"double": lambda arguments: arguments["x"] * 2}


async def test_a_rollout_of_two_calls_and_a_tool_becomes_one_scored_result() -> None:
    async with Rig(SPEC, uses_a_tool_once, TOOLS) as rig, rig.agent(), rig.verifier():
        await rig.submit(0)
        result = (await rig.wait(1))[0]
    trajectory = trajectory_of(result)
    assert (trajectory.status, trajectory.error, trajectory.main) == ("completed", None, "1")
    assert result.verdict.reward == 1.0
    entries = main_transcript(trajectory, forest(trajectory.calls))
    said = [e.item for e in entries]
    assert [i.get("role", i.get("type")) for i in said] == [
        "system",
        "user",
        "function_call",
        "function_call_output",
        "assistant",
    ]
    assert said[3]["output"] == "42"
    assert trajectory.prompt_items == 2
    assert set(rig.calls.values()) == {1}


async def test_a_trajectorys_digest_tells_what_was_asked_and_said_but_not_when() -> None:
    async def digest(question: bytes, answer: str) -> str:
        async with Rig(SPEC, lambda _, __: [message(answer)]) as rig, rig.agent(), rig.verifier():
            await rig.submit(0, row=b'{"prompt": "%b"}' % question)
            (result,) = await rig.wait(1)
        told: str = row_of(result)["warren"]["trajectory_sha256"]
        assert told == trajectory_of(result).digest.hex()
        return told

    first = await digest(b"1+1?", "2")
    assert len(first) == 64
    assert await digest(b"1+1?", "2") == first
    assert len({first, await digest(b"1+2?", "2"), await digest(b"1+1?", "3")}) == 3


@pytest.mark.parametrize(("slots", "waiting"), [(1, 0), (31, 0), (32, 1), (64, 2)])
async def test_a_worker_with_many_slots_has_the_next_tasks_at_hand(
    slots: int, waiting: int
) -> None:
    all_asked, go_on = asyncio.Event(), asyncio.Event()
    asked = 0

    async def holds(items: list[Item], call: ModelCall) -> list[Item]:
        nonlocal asked
        asked += 1
        if asked == slots:
            all_asked.set()
        await go_on.wait()
        return [message("done")]

    async with Rig(SPEC, holds) as rig, rig.agent(slots=slots) as worker, rig.verifier():
        await rig.submit(*range(slots + 5))
        await all_asked.wait()
        depth = await rig.node.depth("warren.q.v1.task.normal.env")
        assert depth is not None
        assert (worker.running, depth.ready) == (slots, 5 - waiting)
        go_on.set()
        await rig.wait(slots + 5)


async def test_the_tool_calls_of_one_step_run_at_once() -> None:
    both = asyncio.Barrier(2)

    async def meet(arguments: dict[str, Any]) -> str:
        async with asyncio.timeout(5):
            await both.wait()
        return str(arguments["x"])

    def model(items: list[Item], call: ModelCall) -> list[Item]:
        if items[-1].get("type") == "function_call_output":
            return [message("done")]
        return [tool_call("meet", "a", x=1), tool_call("meet", "b", x=2)]

    async with Rig(SPEC, model, {"meet": meet}) as rig, rig.agent(), rig.verifier():
        await rig.submit(0)
        nodes = forest(trajectory_of((await rig.wait(1))[0]).calls)
    assert [node.record.path for node in nodes.values()] == ["0", "0.tool.0", "0.tool.1", "1"]


@pytest.mark.parametrize(
    ("finish", "status"), [("length", "truncated"), ("context_overflow", "truncated")]
)
async def test_a_length_limit_ends_the_rollout_as_truncated(finish: str, status: str) -> None:
    def model(items: list[Item], call: ModelCall) -> ModelResult:
        return ModelResult(items=codec.pack([message("hal")]), finish_reason=finish)

    async with Rig(SPEC, model) as rig, rig.agent(), rig.verifier():
        await rig.submit(0)
        result = (await rig.wait(1))[0]
    assert trajectory_of(result).status == status
    assert result.verdict.reward == 1.0


async def test_steps_are_bounded_and_the_last_tool_outputs_are_kept() -> None:
    def model(items: list[Item], call: ModelCall) -> list[Item]:
        return [tool_call("double", f"c{len(items)}", x=1)]

    limits = Limits(max_steps=3, timeout_s=10.0)
    async with Rig(SPEC, model, TOOLS) as rig, rig.agent(), rig.verifier():
        await rig.submit(0, limits=limits)
        trajectory = trajectory_of((await rig.wait(1))[0])
    assert trajectory.status == "truncated"
    assert trajectory.error == Failure(kind="budget", message="stopped after 3 steps")
    assert len(trajectory.calls) == 6
    assert len(trajectory.tail_items) == 1


async def test_a_rollout_ends_at_its_time_limit() -> None:
    async def model(items: list[Item], call: ModelCall) -> str:
        await asyncio.sleep(60)
        return "late"

    limits = Limits(timeout_s=0.3, call_timeout_s=30.0)
    async with Rig(SPEC, model) as rig, rig.agent(), rig.verifier():
        await rig.submit(0, limits=limits)
        trajectory = trajectory_of((await rig.wait(1))[0])
    assert trajectory.status == "truncated"
    assert trajectory.error is not None
    assert trajectory.error.kind == "budget"


async def test_a_call_that_nobody_answers_ends_at_its_deadline_as_infra() -> None:
    async def model(items: list[Item], call: ModelCall) -> str:
        await asyncio.sleep(60)
        return "late"

    limits = Limits(timeout_s=30.0, call_timeout_s=0.3)
    async with Rig(SPEC, model) as rig, rig.agent(), rig.verifier():
        await rig.submit(0, limits=limits)
        result = (await rig.wait(1))[0]
    error = trajectory_of(result).error
    assert error is not None
    assert error.kind == "infra"
    assert result.verdict.reward is None


async def test_a_model_failure_is_a_failed_rollout_without_a_reward() -> None:
    def model(items: list[Item], call: ModelCall) -> ModelResult:
        return ModelResult(error=Failure(kind="model", message="no such model"))

    async with Rig(SPEC, model) as rig, rig.agent(), rig.verifier():
        await rig.submit(0)
        result = (await rig.wait(1))[0]
    assert trajectory_of(result).status == "failed"
    assert trajectory_of(result).error == Failure(kind="model", message="no such model")
    assert result.verdict.reward is None


async def test_an_agent_that_raises_is_a_failed_rollout_that_names_the_line() -> None:
    async def agent(ctx: Context, task: AgentTask) -> None:
        raise KeyError("oops")

    spec = EnvironmentSpec(name="env", agent=agent)
    async with Rig(spec, lambda i, c: "x") as rig, rig.agent(), rig.verifier():
        await rig.submit(0)
        error = trajectory_of((await rig.wait(1))[0]).error
    assert error is not None
    assert error.kind == "agent"
    assert "oops" in error.message
    assert "test_agent_worker" in error.where


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("place", ["agent", "branch"])
async def test_an_agent_that_exits_costs_nobody_else_a_result(
    error: type[BaseException], place: str
) -> None:
    async def leave(ctx: Context) -> None:
        raise error(1)

    async def agent(ctx: Context, task: AgentTask) -> None:
        if task.row["index"] == 0:
            await (leave(ctx) if place == "agent" else ctx.gather(leave, leave))
        await ctx.model()

    spec = EnvironmentSpec(name="env", agent=agent, rewards=[REWARD])
    async with Rig(spec, lambda i, c: "x") as rig, rig.agent(), rig.verifier():
        await rig.submit(0, 1, 2)
        results = await rig.wait(3)
    assert sorted(trajectory_of(r).status for r in results) == ["completed", "completed", "failed"]


async def test_branches_have_paths_of_their_own_and_replay_them() -> None:
    async def solve(ctx: Context) -> str:
        chat = Conversation([{"role": "user", "content": f"{ctx.random.random()}"}])
        return (await ctx.model(chat)).text

    async def agent(ctx: Context, task: AgentTask) -> None:
        texts = await ctx.gather(solve, solve)
        await ctx.model([{"role": "user", "content": " ".join(texts)}])

    spec = EnvironmentSpec(name="env", agent=agent)
    async with Rig(spec, lambda items, c: str(items[0]["content"])) as rig, rig.verifier():
        async with rig.agent():
            await rig.submit(0)
            first = trajectory_of((await rig.wait(1))[0])
        async with rig.agent():
            await rig.submit(0)
            second = trajectory_of((await rig.wait(2))[1])
    paths = [codec.read(CallRecord, c).path for c in first.calls]
    assert sorted(paths) == ["0.0.0", "0.1.0", "1"]
    assert first.main == "1"
    results = [{codec.read(CallRecord, c).result for c in t.calls} for t in (first, second)]
    assert results[0] == results[1]
    assert set(rig.calls.values()) == {1}


async def test_a_stopped_agent_gives_its_rollouts_back_and_another_goes_on_in_the_middle() -> None:
    reached = asyncio.Event()
    release = asyncio.Event()

    async def model(items: list[Item], call: ModelCall) -> list[Item]:
        if items[-1].get("type") == "function_call_output":
            reached.set()
            await release.wait()
            return [message("done")]
        return [tool_call("double", x=21)]

    async with Rig(SPEC, model, TOOLS) as rig, rig.verifier():
        async with rig.agent():
            await rig.submit(0)
            async with asyncio.timeout(5):
                await reached.wait()
        async with rig.agent():
            release.set()
            result = (await rig.wait(1))[0]
    assert trajectory_of(result).status == "completed"
    assert set(rig.calls.values()) == {1}


async def test_a_cut_connection_neither_loses_nor_repeats_a_rollout() -> None:
    started = asyncio.Event()
    release = asyncio.Event()

    async def model(items: list[Item], call: ModelCall) -> str:
        started.set()
        await release.wait()
        return "done"

    async with Rig(SPEC, model) as rig, rig.agent() as agent, rig.verifier():
        await rig.submit(0)
        async with asyncio.timeout(5):
            await started.wait()
        agent._broker.break_connection()  # type: ignore[attr-defined]
        release.set()
        result = (await rig.wait(1))[0]
        assert trajectory_of(result).status == "completed"
        await asyncio.sleep(0)
        assert agent.running == 0
    assert set(rig.calls.values()) == {1}
    assert len(rig.results) == 1


async def test_two_deliveries_of_one_task_leave_one_result() -> None:
    async with Rig(SPEC, uses_a_tool_once, TOOLS) as rig, rig.agent(), rig.verifier():
        await rig.submit(0, 0, 0)
        await rig.submit(1)
        results = await rig.wait(2)
        assert {r.rollout_id for r in results} == {"r/0/0", "r/1/0"}
    assert set(rig.calls.values()) == {1}


async def test_a_delivery_is_renewed_before_the_broker_loses_patience() -> None:
    release = asyncio.Event()

    async def model(items: list[Item], call: ModelCall) -> str:
        await release.wait()
        return "done"

    async with Rig(SPEC, model) as rig, rig.agent(renew_after_s=0.1) as agent, rig.verifier():
        await rig.submit(0)
        held: set[int] = set()
        async with asyncio.timeout(5):
            while len(held) < 4:  # four different deliveries have held it
                held |= {id(r.delivery) for r in agent._running.values()}
                await asyncio.sleep(0.02)
        release.set()
        result = (await rig.wait(1))[0]
    assert trajectory_of(result).status == "completed"
    assert set(rig.calls.values()) == {1}


async def test_a_lost_journal_is_uploaded_by_the_living_owner() -> None:
    started = asyncio.Event()
    release = asyncio.Event()

    async def model(items: list[Item], call: ModelCall) -> list[Item]:
        if items[-1].get("type") == "function_call_output":
            started.set()
            await release.wait()
            return [message("done")]
        return [tool_call("double", x=21)]

    async with Rig(SPEC, model, TOOLS) as rig, rig.agent(), rig.verifier():
        await rig.submit(0)
        async with asyncio.timeout(5):
            await started.wait()
        rig.journal.table.restore(MemoryTable())
        release.set()
        result = (await rig.wait(1))[0]
    assert trajectory_of(result).status == "completed"
    assert set(rig.calls.values()) == {1}


async def test_an_agent_that_replays_differently_is_named_with_the_step() -> None:
    flips = iter(["first", "second"])
    reached = asyncio.Event()

    async def agent(ctx: Context, task: AgentTask) -> None:
        await ctx.model([{"role": "user", "content": next(flips)}])
        reached.set()
        await asyncio.sleep(30 if task.row["index"] == 0 and not done.is_set() else 0)

    done = asyncio.Event()
    spec = EnvironmentSpec(name="env", agent=agent)
    async with Rig(spec, lambda i, c: "x") as rig, rig.verifier():
        async with rig.agent():
            await rig.submit(0)
            async with asyncio.timeout(5):
                await reached.wait()
        done.set()
        async with rig.agent():
            error = trajectory_of((await rig.wait(1))[0]).error
    assert error is not None
    assert error.kind == "agent"
    assert error.where == "0"
    assert "deterministic" in error.message


async def test_a_cancelled_run_ends_as_cancelled_rows() -> None:
    async with Rig(SPEC, lambda i, c: "x") as rig, rig.verifier():
        await rig.runs.register(
            RunInfo(
                run="r", generation="g", environment="env", model="m", repeats=1, created_at=0.0
            )
        )
        assert await rig.runs.cancel("r")
        async with rig.agent():
            await rig.submit(0, 1)
            results = await rig.wait(2)
    kinds = {e.kind for r in results if (e := trajectory_of(r).error)}
    assert kinds == {"cancelled"}


async def test_an_undecodable_task_is_dead_lettered_and_the_next_one_runs() -> None:
    async with Rig(SPEC, uses_a_tool_once, TOOLS) as rig, rig.agent(), rig.verifier():
        await rig.node.declare([dead_queue()])
        key = task_key("normal", "env")
        await rig.node.publish(Outgoing(TASK.name, key, b"\xc1junk", codec.kind_of(Task)))
        await rig.submit(1)
        await rig.wait(1)
        depth = await rig.node.depth(dead_queue().name)
        assert depth is not None
        assert depth.ready == 1


async def test_a_run_s_examples_stand_in_the_place_of_the_environment_s() -> None:
    spec = EnvironmentSpec(name="env", examples=[{"role": "user", "content": "ours"}])
    seen: list[list[Item]] = []

    def model(items: list[Item], _: ModelCall) -> str:
        seen.append(items)
        return "x"

    async with Rig(spec, model) as rig, rig.agent(), rig.verifier():
        await rig.submit(0)
        await rig.wait(1)
        await rig.submit(1, examples=codec.pack([{"role": "user", "content": "the run's"}]))
        await rig.wait(2)
    assert [items[0]["content"] for items in seen] == ["ours", "the run's"]
