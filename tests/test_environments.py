"""The built-in environments: short, with tasks that fit, and scripted policies that vary."""

import json
import time
from pathlib import Path
from typing import Any, cast

import pytest

from broker.messages import Usage
from environments.calculator import calculator
from warren import Environment, Item, PolicyRequest, Rollout, VerifierContext, load_environment
from workers.spec import BadArguments, ToolRun

NAMES = ("calculator", "weather")
NOBODY = cast(VerifierContext, None)


def tasks_of(env: Environment) -> list[dict[str, Any]]:
    assert env.tasks is not None
    return [json.loads(line) for line in env.tasks.read_text(encoding="utf-8").splitlines()]


async def play(env: Environment, task: dict[str, Any], rollout_id: str) -> Rollout:
    """One rollout of the scripted policy, without queues."""
    spec = env.spec()
    assert spec.policy is not None
    prompt = task["responses_create_params"]["input"]
    output: list[Item] = []
    for step in range(20):
        said = spec.policy(PolicyRequest([*prompt, *output], [], rollout_id, str(step)))
        if isinstance(said, str):
            output.append({"type": "message", "role": "assistant", "content": said})
            break
        assert isinstance(said, list)
        output += [*said, *[await answer(env, call) for call in said]]
    return Rollout(
        rollout_id=rollout_id,
        task=task,
        prompt=prompt,
        output=output,
        status="completed",
        error=None,
        state=None,
        session=None,
        steps=step + 1,
        usage=Usage(),
    )


async def answer(env: Environment, call: Item) -> Item:
    run = ToolRun(arguments=json.loads(call["arguments"]), idempotency_key="")
    try:
        text = json.dumps(await env.spec().tools[call["name"]].run(run))
    except (BadArguments, ValueError) as e:
        text = f"Error: {e}"
    return {"type": "function_call_output", "call_id": call["call_id"], "output": text}


async def rewards(env: Environment, run: str) -> list[list[float]]:
    (reward,) = env.spec().rewards
    return [
        [await reward.run(await play(env, task, f"{run}/{i}/{k}"), NOBODY) for k in range(6)]
        for i, task in enumerate(tasks_of(env))
    ]


@pytest.mark.parametrize("name", NAMES)
def test_it_is_one_short_file_with_a_dozen_tasks(name: str) -> None:
    env = load_environment(name)
    assert len(Path(env.source).read_text(encoding="utf-8").splitlines()) < 80
    tasks = tasks_of(env)
    assert len(tasks) >= 12
    assert all(task["expected_answer"] for task in tasks)


@pytest.mark.parametrize("name", NAMES)
async def test_the_scripted_policy_has_mixed_outcomes(name: str) -> None:
    groups = await rewards(load_environment(name), "run")
    assert {reward for group in groups for reward in group} == {0.0, 1.0}
    assert all(max(group) == 1.0 for group in groups), "every task can be solved"
    assert sum(0 < sum(group) < len(group) for group in groups) > len(groups) / 2


@pytest.mark.parametrize("name", NAMES)
async def test_outcomes_depend_on_task_and_repeat_alone(name: str) -> None:
    env = load_environment(name)
    assert await rewards(env, "one") == await rewards(env, "other")


@pytest.mark.parametrize("name", NAMES)
async def test_some_rollouts_recover_from_a_bad_argument(name: str) -> None:
    env = load_environment(name)
    played = [await play(env, tasks_of(env)[0], f"r/0/{k}") for k in range(30)]
    assert any("Error" in str(rollout.tool_outputs) for rollout in played)
    assert all(rollout.answer != "I don't know." for rollout in played)


@pytest.mark.parametrize("name", NAMES)
async def test_an_unfamiliar_task_is_answered_too(name: str) -> None:
    task = {"responses_create_params": {"input": [{"role": "user", "content": "Who are you?"}]}}
    rollout = await play(load_environment(name), task, "r/0/0")
    assert rollout.answer


async def test_plain_arithmetic_is_solved() -> None:
    content = "What is (12 + 8) * 3?"
    task = {
        "responses_create_params": {"input": [{"role": "user", "content": content}]},
        "expected_answer": 60,
    }
    rollout = await play(load_environment("calculator"), task, "r/0/1")
    assert rollout.answer in {"60.0", "61.0"}


@pytest.mark.parametrize(
    ("expression", "value"),
    [("2 + 3 * 4", 14), (" -(2 ** 10) ", -1024), ("7 % 4 / 2", 1.5), ("1e3", 1000)],
)
async def test_the_calculator_calculates(expression: str, value: float) -> None:
    assert await calculator(expression) == value


@pytest.mark.parametrize(
    "expression",
    [
        "9**9**9",
        "9**99999999",
        "2**-9999999",
        "(-8)**0.5",
        "1e308 * 10",
        "10**10**2",
        "__import__('os').system('true')",
        "().__class__",
        "[0] * 10**9",
        "'a' * 10**9",
        "1j",
        "f(1)",
        "x",
        "1; 2",
        "",
        "1/0",
        "\0",
        "(" * 100 + ")" * 100,
        "-" * 199 + "1x",
        "1 + " * 60 + "1",
        "1 if 1 else 2",
        "lambda: 1",
    ],
)
async def test_the_calculator_is_as_safe_as_model_output_is_hostile(expression: str) -> None:
    started = time.monotonic()
    with pytest.raises((ValueError, SyntaxError, ArithmeticError)):
        await calculator(expression)
    assert time.monotonic() - started < 1
