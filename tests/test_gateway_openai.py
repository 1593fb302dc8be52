"""OpenAI, Azure and compatible servers: what is sent, what comes of the answer."""

from collections.abc import Mapping
from typing import Any

import pytest

from broker.errors import Unreachable, UsageError
from broker.masking import Secret
from tests.support import provider
from tests.support.gateway import KEY, config, output, serving
from tests.support.ports import free_port
from tests.support.provider import Behaviour
from workers.model_gateway.config import Azure, Price
from workers.model_gateway.opening import check_endpoint, endpoints
from workers.spec import Item, message_text

TOOL: Item = {
    "type": "function",
    "name": "add",
    "description": "Adds.",
    "parameters": {"type": "object", "properties": {}},
    "strict": False,
}


async def test_a_chat_call_carries_conversation_tools_and_sampling() -> None:
    async with provider.running() as server, serving(config(server.url)) as caller:
        options = {
            "temperature": 0.7,
            "max_output_tokens": 9,
            "seed": 3,
            "tool_choice": {"type": "function", "name": "add"},
            "metadata": {"extra_body": '{"top_k": 5}'},
        }
        result = await caller.ask(tools=[TOOL], options=options)
        (seen,) = server.seen
    assert message_text(output(result)[0]) == "hello"
    assert seen.path == "/v1/chat/completions"
    assert seen.headers["authorization"] == f"Bearer {KEY.reveal()}"
    assert seen.json == {
        "model": "m",
        "messages": [{"role": "user", "content": "hello"}],
        "tools": [{"type": "function", "function": {k: TOOL[k] for k in TOOL if k != "type"}}],
        "temperature": 0.7,
        "max_tokens": 9,
        "seed": 3,
        "tool_choice": {"type": "function", "function": {"name": "add"}},
        "top_k": 5,
    }


async def test_usage_and_cost_are_recorded() -> None:
    price = Price(prompt=1.0, generated=10.0, cached=0.5)
    async with provider.running() as server, serving(config(server.url, price=price)) as caller:
        usage = (await caller.ask()).usage
    counts = (
        usage.prompt_tokens,
        usage.generated_tokens,
        usage.cached_tokens,
        usage.reasoning_tokens,
    )
    assert counts == (20, 5, 8, 2)
    assert usage.cost_usd == pytest.approx((12 * 1.0 + 8 * 0.5 + 5 * 10.0) / 1e6)


async def test_a_responses_call_passes_items_as_they_are() -> None:
    message = {"type": "message", "role": "assistant", "id": "msg_1", "content": []}
    call = {"type": "function_call", "call_id": "c", "name": "add", "arguments": "{", "id": "fc_1"}
    answer = {
        "id": "resp_1",
        "model": "gpt",
        "status": "completed",
        "output": [message, call],
        "usage": {"input_tokens": 7, "output_tokens": 3},
    }
    items: list[Item] = [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}]
    async with (
        provider.running(provider.answers(answer)) as server,
        serving(config(server.url, api="responses")) as caller,
    ):
        result = await caller.ask(items, tools=[TOOL], options={"seed": 1, "temperature": 0.1})
        (seen,) = server.seen
    assert seen.path == "/v1/responses"
    assert seen.json == {"model": "m", "input": items, "tools": [TOOL], "temperature": 0.1}
    assert [item["type"] for item in output(result)] == ["message", "function_call"]
    assert (result.finish_reason, result.response_id) == ("tool_calls", "resp_1")
    assert result.usage.prompt_tokens == 7


async def test_an_answer_cut_by_the_length_limit_says_so() -> None:
    cut = {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
    async with (
        provider.running(provider.answers({**cut, "output": []})) as server,
        serving(config(server.url, api="responses")) as caller,
    ):
        assert (await caller.ask()).finish_reason == "length"


async def test_a_redirect_of_a_provider_takes_the_conversation_along() -> None:
    moved = provider.raw(307, b"", {"location": "/v1/elsewhere"})
    async with (
        provider.running(script=[moved]) as server,
        serving(config(server.url, azure=Azure(api_version="1"))) as caller,
    ):
        result = await caller.ask()
        first, second = server.seen
    assert message_text(output(result)[0]) == "hello"
    assert (second.path, second.json) == ("/v1/elsewhere", first.json)


@pytest.mark.parametrize("end", [provider.closes, provider.resets])
@pytest.mark.parametrize("how", [{"api": "chat"}, {"azure": Azure(api_version="1")}])
async def test_a_kept_connection_that_ends_unheard_is_no_failure(
    how: Mapping[str, Any], end: Behaviour
) -> None:
    async with (
        provider.running(script=[provider.says("first"), end]) as server,
        serving(config(server.url, **how)) as caller,
    ):
        await caller.ask()
        result = await caller.ask()
        assert len(server.seen) == 3
        (endpoint,) = caller.gateway.endpoints()["m"]
    assert (result.tries, endpoint.why, endpoint.requests) == (1, "", 3)


@pytest.mark.parametrize("token", [None, Secret("ad-token")])
async def test_azure_is_asked_in_its_own_way(token: Secret | None) -> None:
    azure = Azure(api_version="2025-04-01", deployment="dep", ad_token=token)
    async with provider.running() as server:
        base = server.url.removesuffix("/v1")
        key = None if token else KEY
        async with serving(config(base, azure=azure, api_key=key)) as caller:
            assert (await caller.ask()).error is None
        (seen,) = server.seen
    assert seen.path == "/openai/deployments/dep/chat/completions?api-version=2025-04-01"
    header = ("authorization", "Bearer ad-token") if token else ("api-key", KEY.reveal())
    assert seen.headers[header[0]] == header[1]


async def test_azure_without_a_key_is_said_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("AZURE_OPENAI_API_KEY", "AZURE_OPENAI_AD_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    keyless = config("https://x.invalid", azure=Azure(api_version="1"), api_key=None)
    with pytest.raises(UsageError, match="model 'm': Missing credentials"):
        endpoints(keyless)


async def test_what_cannot_be_sent_fails_with_the_reason_and_no_request() -> None:
    async with provider.running() as server, serving(config(server.url)) as caller:
        result = await caller.ask([{"type": "item_reference", "id": "x"}])
        assert server.seen == []
    assert result.error is not None
    assert "item_reference" in result.error.message


async def test_check_endpoint_takes_a_server_that_lists_no_models() -> None:
    async with provider.running() as server:
        await check_endpoint(config(server.url))


async def test_check_endpoint_says_which_url_and_what_to_try() -> None:
    url = f"http://user:hunter2@127.0.0.1:{free_port()}/v1"
    with pytest.raises(Unreachable, match=r"connection failed.*--base-url") as caught:
        await check_endpoint(config(url))
    assert "hunter2" not in str(caught.value)


async def test_check_endpoint_says_that_a_key_was_refused_without_showing_it() -> None:
    async with provider.running() as server:
        server.other["/v1/models"] = provider.error(401, f"Incorrect API key: {KEY.reveal()}")
        with pytest.raises(
            Unreachable, match=r"Incorrect API key: \*\*\*.*--api-key-env"
        ) as caught:
            await check_endpoint(config(server.url))
    assert KEY.reveal() not in str(caught.value)
