"""Scripted policies through the gateway."""

import asyncio
import copy
from typing import Any

import pytest

from broker.messages import ModelResult
from tests.support.gateway import output, serving
from workers.spec import EnvironmentSpec, Item, Policy, PolicyRequest, message_text


def environment(policy: Policy) -> EnvironmentSpec:
    return EnvironmentSpec(name="demo", policy=policy)


async def ask(policy: Policy) -> ModelResult:
    async with serving(environments=[environment(policy)]) as caller:
        return await caller.ask(model="scripted/demo", options={"temperature": 0.5})


async def test_a_policys_text_is_a_message_with_plausible_usage() -> None:
    result = await ask(lambda request: f"{request.rollout} {request.temperature}")
    assert message_text(output(result)[0]) == "run.g/0/0 0.5"
    assert (result.finish_reason, result.error, result.tries) == ("stop", None, 1)
    assert result.usage.prompt_tokens > 0
    assert result.usage.generated_tokens > 0


async def test_an_async_policy_may_call_tools() -> None:
    async def policy(request: PolicyRequest) -> list[Item]:
        await asyncio.sleep(0)
        call = {"type": "function_call", "name": "add", "call_id": "", "arguments": "{}"}
        return [call, call]

    result = await ask(policy)
    assert result.finish_reason == "tool_calls"
    assert len({item["call_id"] for item in output(result)}) == 2


async def test_a_policy_that_raises_fails_its_call_and_says_why() -> None:
    def policy(_: PolicyRequest) -> str:
        raise ValueError("no idea")

    result = await ask(policy)
    assert result.error is not None
    assert result.error.kind == "model"
    assert "no idea" in result.error.message


async def test_a_policy_that_changes_what_it_is_given_changes_nobody_elses() -> None:
    tool = {"type": "function", "name": "add", "parameters": {"type": "object"}}
    seen = []

    def policy(request: PolicyRequest) -> str:
        seen.append(copy.deepcopy((request.items[0]["role"], request.tools)))
        request.items[0].clear()
        request.tools[0].clear()
        return "done"

    async with serving(environments=[environment(policy)]) as caller:
        for _ in range(2):
            await caller.ask(model="scripted/demo", tools=[tool])
    assert seen == [("user", [tool]), ("user", [tool])]


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, BaseException])
async def test_an_async_policy_that_exits_fails_its_call_alone(error: type[BaseException]) -> None:
    async def policy(_: PolicyRequest) -> str:
        raise error("away")

    result = await ask(policy)
    assert result.error is not None
    assert result.error.kind == "model"


@pytest.mark.parametrize(
    ("said", "complaint"),
    [(3, "not text or a list"), ([{"type": "message", "content": object()}], "can not serialize")],
)
async def test_a_policy_that_returns_nonsense_fails_its_call(said: Any, complaint: str) -> None:
    result = await ask(lambda _: said)
    assert result.error is not None
    assert complaint in result.error.message


async def test_a_gateway_consumes_every_lane_of_each_of_its_models() -> None:
    async with serving(environments=[environment(lambda _: "x")]) as caller:
        sources = caller.gateway.sources()
        assert {source.stage for source in sources} == {"model"}
        assert len({source.queue.name for source in sources}) == 3
