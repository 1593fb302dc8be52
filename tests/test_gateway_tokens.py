"""Tokens in, tokens out: a conversation goes on from what was sampled, on a server that retells."""

import asyncio
import json
from array import array
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from broker import codec
from broker.messages import VersionSpan
from tests.support import provider
from workers.model_gateway.backend import BackendRequest, Refused
from workers.model_gateway.config import ModelConfig
from workers.model_gateway.remarks import Remark
from workers.model_gateway.vllm_backend import VllmBackend
from workers.model_gateway.vllm_tokens import RENDER, TokenPath, continuation

EOS, NEWLINE = 2, 10
#: What was sampled; the server's template tokenises the same words as 50, 51.
KNOWN = [1, 5, 6, 7, EOS]
CLOSED = [1, 50, 51, EOS, NEWLINE]
NEW = [60, 61]


def test_known_tokens_are_kept_and_only_what_is_new_is_rendered() -> None:
    assert continuation(KNOWN, CLOSED, [*CLOSED, *NEW]) == [*KNOWN, NEWLINE, *NEW]


def test_an_answer_that_was_cut_is_closed_as_the_template_closes_it() -> None:
    cut = [1, 5, 51]
    assert continuation(cut, CLOSED, [*CLOSED, *NEW]) == [1, 5, 51, EOS, NEWLINE, *NEW]


@pytest.mark.parametrize(
    ("closed", "whole"),
    [
        ([1, 50, EOS], [1, 51, EOS, 60]),  # the template changes the history
        ([1, 50, 52, 53, 54, 55], [1, 50, 52, 53, 54, 55, 60]),  # no end in sight
        ([], [60]),
    ],
)
def test_where_the_history_itself_changes_a_branch_begins(
    closed: list[int], whole: list[int]
) -> None:
    assert continuation(KNOWN, closed, whole) is None


def with_tokens(text: str) -> dict[str, Any]:
    """A chat answer of one token, as vLLM tells it."""
    answer = provider.chat({"role": "assistant", "content": text})
    answer["choices"][0] |= {"token_ids": [9], "logprobs": {"content": [{"logprob": -0.5}]}}
    return answer | {"prompt_token_ids": [1, 2]}


class Server:
    """A vLLM whose template may retell the history in other tokens."""

    def __init__(self, closed: list[int]) -> None:
        self.closed = closed
        self.derendered: list[Any] = []
        self.asked: list[str] = []
        self.there = True
        self.chats_everywhere = False

    async def __call__(self, seen: provider.Seen, writer: asyncio.StreamWriter) -> None:
        self.asked.append(seen.path)
        await self._answer(seen)(seen, writer)

    def _answer(self, seen: provider.Seen) -> provider.Behaviour:
        body = seen.json
        if seen.path == "/v1/chat/completions" and not self.there:
            return provider.answers(with_tokens("chat"))
        if seen.path != "/v1/chat/completions" and not self.there:
            return provider.error(403, "start it with --enable-scale-out")
        if self.chats_everywhere:
            return provider.answers(provider.chat({"role": "assistant", "content": "chat"}))
        match seen.path:
            case "/v1/chat/completions/render":
                more = NEW if body.get("add_generation_prompt", True) else []
                sampling = {"temperature": body["temperature"], "max_tokens": 100}
                return provider.answers(
                    {"token_ids": self.closed + more, "sampling_params": sampling}
                )
            case "/inference/v1/generate":
                self.generated = body
                logprobs = {"content": [{"token_id": 9, "logprob": -0.5, "rank": 1}]}
                weights = [{"version": "3", "start": 0, "end": 1}]
                choice = {"index": 0, "token_ids": [9], "logprobs": logprobs}
                choice |= {"finish_reason": "stop", "weight_versions": weights}
                return provider.answers({"request_id": "g", "choices": [choice]})
            case "/v1/chat/completions/derender":
                self.derendered.append(body)
        return provider.answers(provider.chat({"role": "assistant", "content": "from tokens"}))


REQUEST = BackendRequest(
    model="m",
    remarks=[
        Remark(codec.pack({"role": "user", "content": "a"})),
        Remark(codec.pack({"type": "message", "role": "assistant", "content": "b"})),
        Remark(codec.pack({"role": "user", "content": "c"})),
    ],
    known_ids=array("i", KNOWN).tobytes(),
    known_items=2,
    rollout="r/0/0",
    path="1",
)


async def ask(server: Server, known: list[int] = KNOWN) -> Any:
    async with provider.running(server) as fake:
        backend = VllmBackend(ModelConfig(name="m", base_urls=(fake.url,), api="vllm"), fake.url)
        fake.other["/weight_info"] = provider.answers({"weight_version": "default"})
        request = msgspec.structs.replace(REQUEST, known_ids=array("i", known).tobytes())
        try:
            return await backend.generate(request)
        finally:
            await backend.close()


async def test_where_the_server_would_tokenise_anew_it_gets_our_tokens() -> None:
    server = Server(CLOSED)
    result = await ask(server)
    assert server.asked[-2:] == ["/inference/v1/generate", "/v1/chat/completions/derender"]
    prompt = [*KNOWN, NEWLINE, *NEW]
    assert server.generated["token_ids"] == prompt
    assert server.generated["sampling_params"]["max_tokens"] == 99, "our prompt is one longer"
    assert result.tokens is not None
    assert array("i", result.tokens.prompt_ids).tolist() == prompt
    assert array("i", result.tokens.generated_ids).tolist() == [9]
    assert result.continues
    assert result.versions == VersionSpan(min=3, max=3)
    (derendered,) = server.derendered
    assert derendered["generate_response"]["choices"][0]["token_ids"] == [9]
    assert json.dumps(derendered["chat_request"]["messages"]).count("role") == 3


async def test_where_the_template_extends_them_anyway_chat_does_it() -> None:
    server = Server([*KNOWN, NEWLINE])
    await ask(server)
    assert server.asked == ["/v1/chat/completions/render", "/v1/chat/completions"]


async def test_a_changed_history_goes_the_chat_way() -> None:
    server = Server([1, 50, 51, 52, 53, 54, 55])
    assert (await ask(server)).tokens is None
    assert server.asked[-1] == "/v1/chat/completions"


async def test_a_server_without_token_endpoints_is_asked_by_chat() -> None:
    server = Server(CLOSED)
    server.there = False
    result = await ask(server)
    assert result.tokens is not None
    assert not result.continues, "nobody needs to send it tokens again"
    assert server.asked == ["/v1/chat/completions/render", "/v1/chat/completions"]


async def test_a_server_that_misses_the_model_for_once_still_has_its_token_endpoints() -> None:
    asked: list[str] = []

    async def post(path: str, _: Mapping[str, Any]) -> bytes:
        asked.append(path)
        raise Refused("HTTP 404: The model `m` does not exist.")

    tokens = TokenPath(post)
    assert await tokens.generate(REQUEST, {}) is None
    assert (asked, tokens.there) == ([RENDER], True)


@pytest.mark.parametrize("answer", [Refused("HTTP 404: Not Found"), b"<html>", b"{}"])
async def test_a_server_without_token_endpoints_is_asked_for_them_again_after_a_while(
    answer: bytes | Refused,
) -> None:
    async def post(_: str, __: Mapping[str, Any]) -> bytes:
        if isinstance(answer, Refused):
            raise answer
        return answer

    tokens = TokenPath(post, look_again_s=0.05)
    assert await tokens.generate(REQUEST, {}) is None
    assert not tokens.there
    async with asyncio.timeout(5):
        while not tokens.there:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_server_that_answers_anything_there_is_asked_by_chat() -> None:
    server = Server(CLOSED)
    server.chats_everywhere = True
    await ask(server)
    assert server.asked == ["/v1/chat/completions/render", "/v1/chat/completions"]
