"""Answers that are odd, malformed or no answers: what each becomes, whichever way it was asked."""

import gzip
import json
from collections.abc import Mapping
from typing import Any

import pytest

from broker.messages import ModelResult
from tests.support import provider
from tests.support.gateway import config, output, serving
from tests.support.provider import Behaviour
from workers.model_gateway.config import Azure
from workers.spec import Item, message_text

Spoken = Mapping[str, Any]

HELLO = json.dumps(provider.chat({"role": "assistant", "content": "hello"})).encode()
PAGE = b"<!DOCTYPE html><html><title>404 Not\nFound</title>" + b"<p>nothing here</p>" * 500
MESSAGE: Item = {
    "type": "message",
    "role": "assistant",
    "content": [{"type": "output_text", "text": "hello"}],
}
DEEP: dict[str, Any] = {}
for _ in range(40):
    DEEP = {"x": DEEP}


@pytest.fixture(
    params=[{"api": "chat"}, {"api": "vllm"}, {"azure": Azure(api_version="1")}],
    ids=["compatible", "vllm", "sdk"],
)
def spoken(request: pytest.FixtureRequest) -> Spoken:
    """Every way to a provider that speaks Chat Completions."""
    fields: Spoken = request.param
    return fields


async def ask(spoken: Spoken, *script: Behaviour) -> tuple[ModelResult, int, str]:
    """One call: its result, how many requests it took, and what failed last."""
    async with (
        provider.running(script=script) as server,
        serving(config(server.url, **spoken)) as caller,
    ):
        result = await caller.ask()
        (endpoint,) = caller.gateway.endpoints()["m"]
        return result, len(server.seen), endpoint.why


def used(usage: object) -> Behaviour:
    """A good answer with this usage."""
    return provider.answers({**json.loads(HELLO), "usage": usage})


def said(**message: object) -> Behaviour:
    """A good answer with this message."""
    return provider.answers(provider.chat({"role": "assistant", **message}))


def choice(**fields: object) -> Behaviour:
    """An answer whose only choice has these."""
    message = {"role": "assistant", "content": "hel"}
    return provider.answers({"choices": [{"index": 0, "message": message, **fields}]})


@pytest.mark.parametrize(
    "odd",
    [
        provider.raw(201, HELLO),
        provider.raw(200, gzip.compress(HELLO), {"content-encoding": "GZIP"}),
        provider.raw(200, HELLO, {"content-encoding": ""}),
        provider.raw(200, HELLO, content_type="text/html"),
        said(content="hello", tool_calls=None, refusal=None, reasoning_content=None),
        said(content=[{"type": "text", "text": "hello"}]),
        used(None),
        used({"prompt_tokens": -5, "completion_tokens": True}),
        used({"prompt_tokens": 2**63, "completion_tokens": 10**30}),
        used({"prompt_tokens": 2.5, "prompt_tokens_details": {"cached_tokens": [1]}}),
    ],
)
async def test_an_odd_answer_is_an_answer(spoken: Spoken, odd: Behaviour) -> None:
    result, requests, _ = await ask(spoken, odd)
    assert result.error is None
    assert message_text(output(result)[0]) == "hello"
    assert requests == 1


async def test_what_is_no_count_of_tokens_counts_as_none(spoken: Spoken) -> None:
    usage = {"prompt_tokens": 10**12, "completion_tokens": 2**62, "total_tokens": -1}
    result, _, _ = await ask(spoken, used(usage))
    assert (result.usage.prompt_tokens, result.usage.generated_tokens) == (10**12, 0)


@pytest.mark.parametrize("content", ["", None, []])
async def test_an_answer_without_words_is_an_empty_message(spoken: Spoken, content: object) -> None:
    result, requests, _ = await ask(spoken, said(content=content))
    (item,) = output(result)
    assert (item["type"], message_text(item), requests) == ("message", "", 1)


async def test_a_refusal_that_is_no_text_becomes_one(spoken: Spoken) -> None:
    result, requests, _ = await ask(spoken, said(content=None, refusal={"why": 10**40}))
    (item,) = output(result)
    assert "why" in item["content"][0]["refusal"]
    assert requests == 1


@pytest.mark.parametrize(
    ("gave_up", "why"),
    [
        (choice(finish_reason="error"), "gave up"),
        (choice(finish_reason="error", error={"code": 502, "message": "upstream"}), "HTTP 502"),
        (provider.answers({"error": {"code": "server_error", "message": "oops"}}), "oops"),
        (provider.answers({"object": "error", "message": "no such model"}), "no such model"),
        (provider.answers({"detail": "Not Found"}), "Not Found"),
        (provider.raw(200, PAGE, content_type="text/html"), "a web page '404 Not Found'"),
        (provider.raw(200, b"data: {}\n\ndata: [DONE]\n\n"), "a stream of events"),
        (provider.raw(204, b""), "not JSON"),
    ],
)
async def test_what_is_no_answer_is_asked_again_and_said_in_the_servers_words(
    spoken: Spoken, gave_up: Behaviour, why: str
) -> None:
    result, requests, failed = await ask(spoken, gave_up)
    assert result.error is None
    assert requests == 2
    assert why in failed


async def test_an_answer_that_an_engine_broke_off_is_asked_again_and_blames_nobody(
    spoken: Spoken,
) -> None:
    result, requests, failed = await ask(spoken, choice(finish_reason="abort"))
    assert message_text(output(result)[0]) == "hello"
    assert (requests, failed) == (2, "")


@pytest.mark.parametrize(
    ("error", "becomes"),
    [
        ({"code": 400, "message": "no such tool"}, "HTTP 400: no such tool"),
        ({"code": "404", "message": "no such model"}, "HTTP 404: no such model"),
        ({"code": "invalid_prompt", "message": "not this"}, "HTTP 400: not this"),
        ({"code": "insufficient_quota", "message": "pay"}, "HTTP 429: pay"),
        ({"code": 400, "message": "maximum context length is 9"}, "context_overflow"),
        ({"code": "context_length_exceeded", "message": "too long"}, "context_overflow"),
    ],
)
async def test_a_refusal_in_an_answer_that_says_200_is_one(
    spoken: Spoken, error: Mapping[str, Any], becomes: str
) -> None:
    result, requests, _ = await ask(spoken, provider.answers({"error": error}))
    told = result.error.message if result.error else result.finish_reason
    assert (told, requests) == (becomes, 1)


async def test_a_page_instead_of_an_error_is_named_not_quoted(spoken: Spoken) -> None:
    result, requests, _ = await ask(spoken, provider.raw(404, PAGE, content_type="text/html"))
    assert result.error is not None
    assert result.error.message == (
        "HTTP 404: a web page '404 Not Found', not an API: check the base URL, and what stands"
        " before it"
    )
    assert requests == 1


async def test_who_asks_for_a_longer_wait_than_there_is_time_for_is_quoted(
    spoken: Spoken,
) -> None:
    result, requests, _ = await ask(spoken, provider.error(503, "full", retry_after="9999"))
    assert result.error is not None
    assert result.error.message == "HTTP 503: full (1 try; it asks to wait 9999 s more)"
    assert requests == 1


def responds(*items: object, **fields: object) -> Behaviour:
    """A Responses answer."""
    return provider.answers({"id": "r", "status": "completed", "output": list(items), **fields})


def a_call(**fields: object) -> Item:
    return {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}", **fields}


@pytest.mark.parametrize(
    "malformed",
    [
        responds(5),
        responds({"type": ["message"]}),
        responds({**MESSAGE, "content": "hello"}),
        responds({**MESSAGE, "content": None}),
        responds({**MESSAGE, "content": [5]}),
        responds({**MESSAGE, "more": 10**400}),
        responds({**MESSAGE, "more": DEEP}),
        responds(a_call(arguments=None)),
        responds(a_call(arguments={"a": 1})),
        responds(a_call(name=None)),
        responds(MESSAGE, incomplete_details="length"),
        responds(MESSAGE, status="failed", error={"code": "server_error", "message": "oops"}),
        responds(status="cancelled"),
        responds(status="in_progress"),
        responds(status={}),
        provider.answers({"output": "hello"}),
    ],
)
async def test_a_malformed_response_is_asked_again(malformed: Behaviour) -> None:
    async with (
        provider.running(responds(MESSAGE), [malformed]) as server,
        serving(config(server.url, api="responses")) as caller,
    ):
        result = await caller.ask()
        assert len(server.seen) == 2
    assert message_text(output(result)[0]) == "hello"


@pytest.mark.parametrize("usage", [None, "many", {"input_tokens": 10**30, "output_tokens": None}])
async def test_an_empty_response_is_an_empty_message(usage: object) -> None:
    async with (
        provider.running(responds(usage=usage)) as server,
        serving(config(server.url, api="responses")) as caller,
    ):
        result = await caller.ask()
        assert len(server.seen) == 1
    (item,) = output(result)
    assert (item["type"], message_text(item), result.finish_reason) == ("message", "", "stop")


async def test_a_conversation_that_a_response_failed_for_its_length_is_truncated() -> None:
    failed = {"code": "context_length_exceeded", "message": "too long"}
    async with (
        provider.running(responds(status="failed", error=failed)) as server,
        serving(config(server.url, api="responses")) as caller,
    ):
        result = await caller.ask()
        assert len(server.seen) == 1
    assert (result.error, result.finish_reason) == (None, "context_overflow")
