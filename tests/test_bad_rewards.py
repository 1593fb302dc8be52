"""What a reward function may do wrong: always a failure that names it, never a number."""

import asyncio
import math
import time
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

from broker import codec
from broker.messages import ModelCall
from tests.support.rig import tool_call, trajectory_of
from tests.support.tool_rig import whole_rig
from warren import Environment, Rollout
from workers.rewards import PackedRollout, Scored, evaluate, unpack_rollout
from workers.spec import Item

PACKED = PackedRollout(
    rollout_id="r/0/0",
    row=b"{}",
    prompt=codec.pack([]),
    output=codec.pack([]),
    status="completed",
)


async def scored(function: Any, **options: Any) -> Scored:
    env = Environment("bad", reward_range=(0.0, 1.0))
    env.reward(**options)(function)
    spec = env.spec()
    ctx: Any = None
    return await evaluate(spec, spec.rewards[0], unpack_rollout(PACKED, spec), ctx, 60.0)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (2.0, "returned 2, outside of the environment's reward_range 0..1"),
        (-0.01, "returned -0.01, outside"),
        (math.nan, "returned nan"),
        (math.inf, "returned inf"),
        ("1.0", "returned str '1.0', not a number"),
        (None, "returned NoneType 'None', not a number"),
        ([1], "returned list '[1]', not a number"),
        ({"r": 1}, "returned dict \"{'r': 1}\", not a number"),
        (10**400, "returned a int that is no one number"),
    ],
)
async def test_what_is_no_reward_is_named(value: object, said: str) -> None:
    def odd(rollout: Rollout):  # type: ignore[no-untyped-def]
        return value

    result = await scored(odd)
    assert result.value is None
    assert result.error is not None
    assert result.error.kind == "verifier"
    assert result.error.message.startswith(f"reward 'odd': {said}")


async def test_true_and_false_are_one_and_zero() -> None:
    assert (await scored(lambda rollout: True, name="yes")).value == 1.0
    assert (await scored(lambda rollout: False, name="no")).value == 0.0


class Quarter:
    """As numpy's scalars are, `numpy.bool_` too."""

    def __float__(self) -> float:
        return 0.25


@pytest.mark.parametrize("number", [Quarter(), Fraction(1, 4), Decimal("0.25")])
async def test_numbers_of_other_libraries_are_numbers(number: object) -> None:
    assert (await scored(lambda rollout: number, name="n")).value == 0.25


async def test_what_it_raises_is_told_with_its_line() -> None:
    def broken(rollout: Rollout) -> float:
        return float(rollout.task["missing"])

    result = await scored(broken)
    assert result.error is not None
    assert result.error.message == "reward 'broken': KeyError: 'missing'"
    assert "test_bad_rewards.py" in result.error.where


async def test_sys_exit_ends_the_reward_and_nothing_else() -> None:
    async def leave(rollout: Rollout) -> float:
        raise SystemExit(3)

    result = await scored(leave)
    assert result.error is not None
    assert "sys.exit(3)" in result.error.message


async def test_one_that_ignores_its_cancellation_is_lost_but_its_verdict_comes() -> None:
    release = asyncio.Event()

    async def stubborn(rollout: Rollout) -> float:
        while not release.is_set():
            try:
                await asyncio.wait_for(release.wait(), 30)
            except asyncio.CancelledError:
                continue
        return 1.0

    began = time.monotonic()
    result = await scored(stubborn, timeout_s=0.1)
    release.set()
    assert result.lost
    assert result.error is not None
    assert result.error.message == "reward 'stubborn': no reward within 0.1 s"
    assert time.monotonic() - began < 10


async def test_no_model_can_call_setup() -> None:
    """A call without a name is `setup` on the wire; a model's would make the state anew."""
    env = Environment("tally")

    @env.setup
    def tally() -> dict[str, int]:
        return {"total": 0}

    @env.tool
    def add(state: dict[str, int]) -> int:
        state["total"] += 1
        return state["total"]

    @env.reward
    def kept(rollout: Rollout) -> bool:
        return bool(rollout.state == {"total": 1})

    def model(items: list[Item], _: ModelCall) -> list[Item] | str:
        done = sum(item.get("type") == "function_call_output" for item in items)
        return "done" if done > 1 else [tool_call(["add", ""][done], f"c{done}")]

    async with whole_rig(env.spec(), model) as rig:
        await rig.submit(0)
        [result] = await rig.wait(1)
    assert result.verdict.reward == 1.0
    assert "there is no tool" in str(trajectory_of(result))


async def test_what_a_reward_does_to_its_rollout_no_other_sees() -> None:
    env = Environment("shared")

    @env.reward
    def first(rollout: Rollout) -> float:
        said = rollout.answer
        for items in (rollout.prompt, rollout.output):
            for item in items:
                item.clear()
        return float(said == "done")

    @env.reward
    def second(rollout: Rollout) -> float:
        return float(rollout.answer == "done" and rollout.prompt[0]["role"] == "user")

    async with whole_rig(env.spec(), lambda items, _: "done") as rig:
        await rig.submit(0)
        [result] = await rig.wait(1)
    assert result.verdict.components == (("first", 1.0), ("second", 1.0))
    assert "done" in str(trajectory_of(result))
