"""Everything a provider does wrong: what the rollout gets, and how many requests it cost."""

import asyncio
import email.utils
import json
import time
from collections.abc import Mapping
from typing import Any

import pytest

from broker.masking import Secret
from broker.messages import ModelResult
from tests.support import provider
from tests.support.gateway import KEY, Caller, config, output, serving
from tests.support.ports import free_port
from tests.support.provider import Behaviour
from workers.model_gateway.config import Azure
from workers.spec import message_text

OVERFLOW = "This model's maximum context length is 2048 tokens. However, you requested 3000."


Spoken = Mapping[str, Any]
"""Fields of the model's config that choose how its provider is spoken to."""


@pytest.fixture(
    params=[{"api": "chat"}, {"api": "vllm"}, {"azure": Azure(api_version="1")}],
    ids=["compatible", "vllm", "sdk"],
)
def spoken(request: pytest.FixtureRequest) -> Spoken:
    """Every way to a provider keeps the same promises."""
    fields: Spoken = request.param
    return fields


async def ask(spoken: Spoken, *script: Behaviour, **fields: Any) -> tuple[ModelResult, int]:
    """One call to a provider that does this, then answers; the result and its requests."""
    async with (
        provider.running(script=script) as server,
        serving(config(server.url, **spoken, **fields)) as c,
    ):
        result = await c.ask()
        return result, len(server.seen)


def text(result: ModelResult) -> str:
    assert result.error is None, result.error
    return message_text(output(result)[0])


@pytest.mark.parametrize(
    "wrong",
    [
        provider.error(500, "oops"),
        provider.error(502, "oops"),
        provider.error(503, "oops"),
        provider.error(504, "oops"),
        provider.error(408, "slow"),
        provider.error(409, "conflict"),
        provider.error(425, "early"),
        provider.error(429, "slow down"),
        provider.breaks_off,
        provider.resets,
        provider.raw(200, b"{not json"),
        provider.raw(200, b"\xff\xfe{}"),
        provider.raw(200, b"<html>Bad gateway</html>", content_type="text/html"),
        provider.raw(200, b""),
        provider.raw(200, b"[" * 100_000),
        provider.answers([1]),
        provider.answers({"choices": []}),
        provider.answers({"choices": [{"message": None}]}),
        provider.answers({"choices": [{"message": {"tool_calls": [3]}}]}),
        provider.answers({"error": {"code": 503, "message": "upstream"}}),
    ],
)
async def test_a_passing_fault_costs_one_more_request_and_the_rollout_never_hears_of_it(
    spoken: Spoken, wrong: Behaviour
) -> None:
    result, requests = await ask(spoken, wrong)
    assert text(result) == "hello"
    assert result.tries <= requests == 2


@pytest.mark.parametrize("hang", [provider.hangs, provider.hangs_after_headers])
async def test_a_hung_connection_is_cut_and_asked_again(spoken: Spoken, hang: Behaviour) -> None:
    result, requests = await ask(spoken, hang, try_timeout_s=0.2)
    assert (text(result), requests) == ("hello", 2)


async def test_a_slow_first_byte_is_waited_for(spoken: Spoken) -> None:
    result, requests = await ask(spoken, provider.says("late", delay_s=0.3))
    assert (text(result), requests) == ("late", 1)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
async def test_a_refusal_fails_at_once_with_the_providers_words(
    spoken: Spoken, status: int
) -> None:
    result, requests = await ask(spoken, provider.error(status, "we don't like this"))
    assert result.error is not None
    assert result.error.kind == "model"
    assert result.error.message == f"HTTP {status}: we don't like this"
    assert requests == 1


async def test_an_empty_account_is_a_refusal(spoken: Spoken) -> None:
    result, requests = await ask(
        spoken, provider.error(429, "Pay first.", code="insufficient_quota")
    )
    assert result.error is not None
    assert requests == 1


@pytest.mark.parametrize(
    "wrong",
    [
        provider.error(400, OVERFLOW),
        provider.error(400, "Too long.", code="context_length_exceeded"),
        provider.error(413, "the prompt is too long: 9000 tokens"),
    ],
)
async def test_a_context_overflow_is_no_error(spoken: Spoken, wrong: Behaviour) -> None:
    result, requests = await ask(spoken, wrong)
    assert (result.finish_reason, result.error, requests) == ("context_overflow", None, 1)
    assert result.items == b""


@pytest.mark.parametrize("form", ["retry-after", "retry-after-ms", "date"])
async def test_retry_after_is_honoured_in_every_form(spoken: Spoken, form: str) -> None:
    value = {"retry-after": "1", "retry-after-ms": "1000"}.get(form)
    if value is None:
        form, value = "retry-after", email.utils.formatdate(time.time() + 2, usegmt=True)
    wrong = provider.raw(429, b"{}", {form: value})
    async with (
        provider.running(script=[wrong]) as server,
        serving(config(server.url, **spoken)) as caller,
    ):
        assert text(await caller.ask()) == "hello"
        first, second = server.seen
        assert second.at - first.at >= 0.9


async def test_a_long_wait_is_spent_in_the_broker_and_leaves_the_slot_to_others(
    spoken: Spoken,
) -> None:
    wrong = provider.raw(429, b"{}", {"retry-after": "3"})
    async with (
        provider.running(script=[wrong]) as server,
        serving(config(server.url, **spoken, max_concurrency=1), prefetch=1) as caller,
        asyncio.TaskGroup() as group,
    ):
        waits = group.create_task(caller.ask(rollout="run.g/0/0"))
        await server.requests(1)
        assert text(await caller.ask(rollout="run.g/1/0")) == "hello"
        assert not waits.done()
        result = await waits
        assert result.tries == 2, "tries are counted over the ladder"
        assert server.seen[-1].at - server.seen[0].at >= 4.5


async def test_a_call_ends_by_its_deadline_with_what_was_wrong(spoken: Spoken) -> None:
    async with (
        provider.running(provider.error(503, "overloaded")) as server,
        serving(config(server.url, **spoken)) as caller,
    ):
        result = await caller.ask(deadline_s=1.5)
    assert result.error is not None
    assert result.error.kind == "infra"
    assert "overloaded" in result.error.message


async def test_a_server_that_is_not_there_is_an_infrastructure_failure(spoken: Spoken) -> None:
    async with serving(config(f"http://127.0.0.1:{free_port()}/v1", **spoken)) as caller:
        result = await caller.ask(deadline_s=1.0)
    assert result.error is not None
    assert result.error.kind == "infra"
    assert "connection failed" in result.error.message


async def test_a_plain_server_behind_https_is_an_infrastructure_failure(spoken: Spoken) -> None:
    async with provider.running() as server:
        url = server.url.replace("http://", "https://")
        async with serving(config(url, **spoken)) as caller:
            result = await caller.ask(deadline_s=1.0)
        assert server.seen == []
    assert result.error is not None
    assert result.error.kind == "infra"
    assert "connection failed" in result.error.message


async def test_answers_that_stay_unusable_are_given_up_after_five_that_were_paid_for(
    spoken: Spoken,
) -> None:
    async with (
        provider.running(provider.answers({"choices": []})) as server,
        serving(config(server.url, **spoken)) as caller,
    ):
        result = await caller.ask(deadline_s=60)
        assert len(server.seen) == 5
    assert result.error is not None
    assert "no choices" in result.error.message


async def test_an_answer_of_20_mb_is_not_read_to_its_end(spoken: Spoken) -> None:
    body = json.dumps(provider.chat({"content": "x" * 20_000_000})).encode()
    result, requests = await ask(spoken, provider.raw(200, body), provider.raw(200, body))
    assert result.error is not None
    assert "larger than" in result.error.message
    assert requests == 2


async def test_garbage_arguments_and_repeated_ids_reach_the_agent_as_distinct_calls(
    spoken: Spoken,
) -> None:
    calls = provider.calls(
        provider.tool_call("add", "{a: 1", "x"),
        provider.tool_call("add", "", "x"),
        provider.tool_call("add", "[]", None),
    )
    result, _ = await ask(spoken, calls)
    items = output(result)
    assert [item["arguments"] for item in items] == ["{a: 1", "", "[]"]
    assert len({item["call_id"] for item in items}) == 3
    assert result.finish_reason == "tool_calls"


@pytest.mark.parametrize(
    "said",
    [
        f"Incorrect API key provided: {KEY.reveal()}.",
        f"header was Authorization: Bearer {KEY.reveal()}",
        "Incorrect API key provided: sk-very*************1234.",
        "Bearer abc.def-ghi refused",
    ],
)
@pytest.mark.parametrize("status", [401, 500])
async def test_keys_that_a_provider_echoes_are_masked(
    spoken: Spoken, said: str, status: int
) -> None:
    async with (
        provider.running(script=[provider.error(status, said)]) as server,
        serving(config(server.url, **spoken)) as caller,
    ):
        told = await failure(caller)
    for secret in (KEY.reveal(), "sk-very", "abc.def"):
        assert secret not in told
    assert "***" in told


async def failure(caller: Caller) -> str:
    """What became of the first try: the rollout's error, or why another one was made."""
    result = await caller.ask()
    (endpoint,) = caller.gateway.endpoints()["m"]
    return result.error.message if result.error else endpoint.why


@pytest.mark.parametrize("status", [200, 401, 500])
@pytest.mark.parametrize("how", ["bearer", "url", "azure"])
async def test_a_server_that_repeats_what_it_was_sent_tells_nobody_our_secrets(
    how: str, status: int
) -> None:
    async with provider.running(script=[provider.repeats_headers(status)]) as server:
        url = server.url.replace("//", "//me:pass%22word@") if how == "url" else server.url
        azure = (
            Azure(api_version="1", ad_token=Secret("eyJ.ad-token.x")) if how == "azure" else None
        )
        key = Secret("odd/key/+=") if how == "bearer" else None
        async with serving(config(url, api_key=key, azure=azure)) as caller:
            told = await failure(caller)
    for secret in ("odd", "key/+=", "bWU6cGFzcyJ3b3Jk", "pass", "ad-token"):
        assert secret not in told
    assert "***" in told


async def test_a_stop_in_the_middle_of_a_call_gives_it_back_and_somebody_else_answers(
    spoken: Spoken,
) -> None:
    async with (
        provider.running(script=[provider.hangs]) as server,
        serving(config(server.url, **spoken)) as first,
        asyncio.TaskGroup() as group,
    ):
        asked = group.create_task(first.ask())
        await server.requests(1)
        await first.stop()
        async with serving(config(server.url, **spoken), beside=first):
            assert text(await asked) == "hello"
        assert len(server.seen) == 2


@pytest.mark.parametrize("api", ["chat", "vllm"])
async def test_a_redirect_is_refused_with_where_to(api: str) -> None:
    moved = provider.raw(308, b"", {"location": "https://gpu2:8000/v1/chat/completions"})
    result, requests = await ask({"api": api}, moved)
    assert result.error is not None
    assert "moved to https://gpu2:8000/v1/chat/completions" in result.error.message
    assert requests == 1


async def test_a_proxy_that_the_environment_names_is_used_for_compatible_servers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with provider.running() as proxy:
        monkeypatch.setenv("http_proxy", proxy.url.removesuffix("/v1"))
        monkeypatch.setenv("no_proxy", "")
        async with serving(config("http://model.invalid/v1")) as caller:
            assert text(await caller.ask()) == "hello"
        (seen,) = proxy.seen
    assert seen.path == "http://model.invalid/v1/chat/completions"
