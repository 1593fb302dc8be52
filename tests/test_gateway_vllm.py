"""vLLM servers: tokens, versions, aborts, load. The server is a fake that answers as 0.32 does."""

import asyncio
from array import array
from typing import Any

import pytest

from broker.messages import ModelResult, VersionSpan
from tests.support import provider
from tests.support.gateway import config, output, serving
from workers.model_gateway.backend import Retryable
from workers.model_gateway.congestion import EngineLoad
from workers.model_gateway.versions import VersionReader
from workers.model_gateway.vllm_backend import engine_load
from workers.spec import message_text

METRICS = """# HELP vllm:num_requests_running x
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 4.0
vllm:num_requests_waiting{engine="0",model_name="m"} 2.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.5
"""


def engine_answer(
    generated: int = 3, finish_reason: str = "stop", logprobs: int | None = None
) -> dict[str, Any]:
    answer = provider.chat({"role": "assistant", "content": "hi"}, finish_reason)
    answer["prompt_token_ids"] = [1, 2, 70_000]
    answer["choices"][0] |= {
        "token_ids": list(range(generated)),
        "logprobs": {
            "content": [
                {"token": "x", "logprob": -0.25 * n, "bytes": [120], "top_logprobs": []}
                for n in range(generated if logprobs is None else logprobs)
            ]
        },
    }
    return answer


async def ask(*script: provider.Behaviour, **options: Any) -> tuple[ModelResult, Any]:
    default = provider.answers(engine_answer())
    async with (
        provider.running(default, script) as server,
        serving(config(server.url, api="vllm")) as caller,
    ):
        return await caller.ask(options=options), server.seen


async def test_the_tokens_of_a_call_are_packed_as_the_engine_said_them() -> None:
    result, _ = await ask()
    assert message_text(output(result)[0]) == "hi"
    assert result.tokens is not None
    assert array("i", result.tokens.prompt_ids).tolist() == [1, 2, 70_000]
    assert array("i", result.tokens.generated_ids).tolist() == [0, 1, 2]
    assert array("f", result.tokens.logprobs).tolist() == [0.0, -0.25, -0.5]
    assert result.versions is None, "no dev mode, no version: null, not 0"


async def test_every_sampling_parameter_is_sent_and_what_drops_tokens_is_not() -> None:
    _, (seen,) = await ask(parallel_tool_calls=False, temperature=0.5, max_output_tokens=9)
    body = seen.json
    assert (body["temperature"], body["top_p"], body["top_k"]) == (0.5, 1.0, -1)
    assert (body["return_token_ids"], body["logprobs"], body["top_logprobs"]) == (True, True, 0)
    assert body["max_tokens"] == 9
    assert body["request_id"].startswith("run.g/0/0:")
    assert "parallel_tool_calls" not in body


async def test_what_is_said_of_tools_is_not_sent_where_there_are_none() -> None:
    _, (seen,) = await ask(tool_choice="auto", temperature=0.5)
    assert "tool_choice" not in seen.json, "vLLM refuses it"
    assert seen.json["temperature"] == 0.5


async def test_an_answer_without_tokens_has_none_and_one_with_odd_ones_is_asked_again() -> None:
    result, _ = await ask(provider.says("plain"))
    assert result.tokens is None
    result, seen = await ask(provider.answers(engine_answer(3, logprobs=2)))
    assert result.tokens is not None
    assert len(seen) == 2


async def test_a_call_that_the_engine_aborted_is_made_again() -> None:
    result, seen = await ask(provider.answers(engine_answer(1, "abort")))
    assert (result.finish_reason, len(seen)) == ("stop", 2)


async def test_an_answer_cut_behind_a_tool_call_is_truncated_all_the_same() -> None:
    cut = provider.answers(engine_answer(4, "tool_calls"))
    result, _ = await ask(cut, max_output_tokens=4)
    assert result.finish_reason == "length"


async def test_a_call_carries_the_versions_before_and_after_it() -> None:
    version = 7

    def info(seen: provider.Seen, writer: asyncio.StreamWriter) -> Any:
        return provider.answers({"weight_version": str(version)})(seen, writer)

    async def update_meanwhile(seen: provider.Seen, writer: asyncio.StreamWriter) -> None:
        nonlocal version
        version = 8
        await provider.answers(engine_answer())(seen, writer)

    async with provider.running(provider.answers(engine_answer())) as server:
        server.other["/weight_info"] = info
        async with serving(config(server.url, api="vllm")) as caller:
            assert (await caller.ask()).versions == VersionSpan(min=7, max=7)
            server.default = update_meanwhile
            assert (await caller.ask()).versions == VersionSpan(min=7, max=8)


async def test_calls_that_end_together_share_one_read_of_the_version() -> None:
    reads = 0

    async def read() -> int:
        nonlocal reads
        reads += 1
        await asyncio.sleep(0)
        return reads

    versions = VersionReader(read)
    before = await versions.known()
    async with asyncio.TaskGroup() as group:
        spans = [group.create_task(versions.span(before)) for _ in range(50)]
    assert reads == 2
    assert {task.result() for task in spans} == {VersionSpan(min=1, max=2)}


async def test_a_version_that_cannot_be_read_does_not_cost_the_answer() -> None:
    async def read() -> int:
        raise Retryable("gone")

    assert await VersionReader(read).span(3) is None


@pytest.mark.parametrize(("owner", "tokens"), [("vllm", True), ("somebody", False)])
async def test_a_vllm_server_is_recognised(owner: str, tokens: bool) -> None:
    async with provider.running(provider.answers(engine_answer())) as server:
        models = {"data": [{"id": "m", "object": "model", "owned_by": owner}]}
        server.other["/v1/models"] = provider.answers(models)
        async with serving(config(server.url, api="auto")) as caller:
            assert ((await caller.ask()).tokens is not None) is tokens


def test_the_load_is_read_over_all_engines() -> None:
    assert engine_load(METRICS) == EngineLoad(running=7, waiting=2, kv_used=0.5)
    assert engine_load("python_gc_objects_collected_total 1.0") is None
