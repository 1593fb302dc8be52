"""A run whose budget is used up ends: running rollouts are cut, queued ones become failed rows."""

import asyncio

import pytest

from broker import codec
from broker.journal.runs import RunInfo, Totals
from broker.messages import Budget, ModelCall, Result, Task, Trajectory
from broker.shared.base import Spent
from broker.shared.memory import MemoryShared
from tests.support.gateway import config, serving
from tests.support.journals import eventually
from tests.support.provider import running
from tests.support.rig import Rig
from workers.model_gateway.config import Price
from workers.spec import EnvironmentSpec, Item

SPEC = EnvironmentSpec(name="env")
DOLLAR = Budget(max_cost_usd=1.0)


def end_of(result: Result) -> tuple[str, str, str]:
    trajectory = codec.read(Trajectory, result.trajectory)
    error = trajectory.error
    return trajectory.status, error.kind if error else "", error.message if error else ""


async def test_what_runs_is_truncated_and_what_is_queued_fails_with_kind_budget() -> None:
    asked = asyncio.Event()

    async def model(_: list[Item], __: ModelCall) -> str:
        asked.set()
        await asyncio.sleep(60)
        return "too late"

    async with Rig(SPEC, model) as rig, rig.agent(slots=1), rig.verifier():
        await rig.submit(0, budget=DOLLAR)
        await asked.wait()
        await rig.submit(1, 2, budget=DOLLAR)
        await rig.submit(3)
        await rig.shared.spend("r.g", Spent(10, 1.25))
        results = {r.task_index: end_of(r) for r in await rig.wait(3)}
    message = "the run's budget of $1 is used up ($1.2500)"
    assert results[0] == ("truncated", "budget", message)
    assert results[1] == results[2] == ("failed", "budget", message)
    assert 3 not in results, "its task says nothing of a budget"


async def test_committed_rows_count_where_the_gateways_know_nothing() -> None:
    async with Rig(SPEC, lambda _, __: "hello") as rig, rig.agent(), rig.verifier():
        info = RunInfo(
            run="r", generation="g", environment="env", model="m", repeats=1, created_at=0.0
        )
        await rig.runs.register(info)
        totals = Totals(prompt_tokens=90, generated_tokens=10)
        await rig.runs.mark("r", "g", "s", [(5, 0)], totals)
        await rig.submit(0, budget=Budget(max_tokens=101))
        await rig.wait(1)
        await rig.submit(1, budget=Budget(max_tokens=100))
        results = await rig.wait(2)
    assert [end_of(r)[:2] for r in results] == [("completed", ""), ("failed", "budget")]


def test_old_tasks_have_no_budget() -> None:
    task = Rig(SPEC, lambda _, __: "").task()
    assert codec.decode(Task, codec.encode(task), codec.kind_of(Task)).budget == Budget()


@pytest.mark.parametrize("generation", ["g", "h"])
async def test_gateways_tell_what_each_run_spends(generation: str) -> None:
    shared = MemoryShared()
    price = Price(prompt=100, generated=1000)
    async with (
        running() as provider,
        serving(config(provider.url, price=price), shared=shared) as caller,
    ):
        for n in range(4):
            await caller.ask(rollout=f"run.{generation}/{n}/0")

        async def told() -> bool:
            return (await shared.spent(f"run.{generation}")).tokens >= 100

        await eventually(told)
        spent = await shared.spent(f"run.{generation}")
    assert spent.tokens == 4 * 25
    assert spent.cost_usd == pytest.approx(4 * (20 * 100 + 5 * 1000) / 1e6)
