"""A rollout's state through the tool worker: made, changed, stored; failures leave it as it was."""

import json
from typing import Annotated, Any

import pytest
from pydantic import BaseModel

from tests.support.tools import tool_bench
from warren import Environment


class Account(BaseModel):
    owner: str
    balance: float = 0.0
    log: list[str] = []


def _bank() -> Environment:
    env = Environment("bank")

    @env.setup
    def open_account(task: dict[str, Any]) -> Account:
        return Account(owner=task["owner"])

    @env.tool
    def deposit(amount: Annotated[float, "euros"], state: Account) -> float:
        state.balance += amount
        return state.balance

    @env.tool
    def forget(state: Account) -> None:
        state.owner = object()  # type: ignore[assignment]

    @env.tool
    def half_done(state: Account) -> None:
        state.balance = -1
        raise ValueError("no")

    @env.tool(effect="pure")
    def balance(state: Account) -> float:
        return state.balance

    @env.tool(effect="pure")
    def lying(state: Account) -> None:
        state.balance += 1

    return env


async def test_state_is_made_changed_and_stored_with_each_call() -> None:
    async with tool_bench(_bank()) as bench:
        assert (await bench.call("", row=b'{"owner": "Ada"}', path="setup")).error is None
        assert (await bench.take()).state_version == 1
        assert (await bench.call("deposit", {"amount": 3})).output == "3.0"
        assert (await bench.call("deposit", {"amount": 4})).output == "7.0"
        assert (await bench.call("balance")).output == "7.0"
        run = await bench.take()
        assert run.state_version == 3
        assert json.loads(run.state) == {"owner": "Ada", "balance": 7.0, "log": []}


@pytest.mark.parametrize(
    ("tool", "said"),
    [
        ("forget", "the state is not what"),
        ("half_done", "ValueError: no"),
        ("lying", "declared pure, but it changed the state"),
    ],
)
async def test_a_tool_that_fails_leaves_the_state_as_it_was(tool: str, said: str) -> None:
    async with tool_bench(_bank()) as bench:
        await bench.call("", row=b'{"owner": "Ada"}', path="setup")
        result = await bench.call(tool)
        assert result.error is not None
        assert said in result.error.message
        run = await bench.take()
        assert run.state_version == 1
        assert json.loads(run.state)["owner"] == "Ada"


async def test_a_setup_that_raises_is_a_recorded_failure() -> None:
    async with tool_bench(_bank()) as bench:
        result = await bench.call("", row=b"{}", path="setup")
        assert result.error is not None
        assert "KeyError: 'owner'" in result.error.message
