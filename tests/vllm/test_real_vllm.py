"""The gateway against a real vLLM: tokens, logprobs, tool calls, new weights, replicas."""

import asyncio
import json
import os
import subprocess
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from broker.messages import ModelResult, Tokens
from broker.shared.base import PauseMode
from broker.shared.memory import MemoryShared
from producers.policy import update_policy
from tests.support.gateway import config, output, serving
from workers.model_gateway.config import ModelConfig
from workers.spec import Item, message_text

pytestmark = pytest.mark.timeout(2400)

ADD: Item = {
    "type": "function",
    "name": "add",
    "description": "Add two numbers.",
    "parameters": {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        "required": ["a", "b"],
    },
}
GREEDY = {"temperature": 0.0, "max_output_tokens": 64}


def model(engine: Any, **fields: Any) -> ModelConfig:
    return config(engine.url, api="vllm", served_name="tiny", try_timeout_s=250.0, **fields)


def asked(text: str) -> list[Item]:
    return [{"role": "user", "content": text}]


def ids(result: ModelResult) -> tuple[list[int], list[int], list[float]]:
    tokens = result.tokens
    assert isinstance(tokens, Tokens), result
    return (
        array("i", tokens.prompt_ids).tolist(),
        array("i", tokens.generated_ids).tolist(),
        array("f", tokens.logprobs).tolist(),
    )


def forward(weights: Path, samples: Sequence[tuple[list[int], list[int]]]) -> list[list[float]]:
    """The same tokens' logprobs by Hugging Face."""
    done = subprocess.run(
        [
            f"{os.environ['WARREN_TEST_VLLM']}/bin/python",
            str(Path(__file__).with_name("forward.py")),
            str(weights),
        ],
        input=json.dumps(samples),
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    found: list[list[float]] = json.loads(done.stdout)
    return found


async def test_ids_and_logprobs_are_those_of_a_forward_pass(engine: Any) -> None:
    async with serving(model(engine)) as caller:
        results = [
            await caller.ask(
                asked(f"What is {n} + {n}?"),
                options={"temperature": 1.0, "max_output_tokens": 40},
                rollout=f"run.g/{n}/0",
                deadline_s=300,
            )
            for n in range(6)
        ]
    samples = [ids(result) for result in results]
    expected = await asyncio.to_thread(
        forward, engine.weights / "tiny", [(prompt, out) for prompt, out, _ in samples]
    )
    for (_, out, logprobs), wanted in zip(samples, expected, strict=True):
        assert len(out) == len(logprobs) > 0
        assert logprobs == pytest.approx(wanted, abs=1e-4)


async def test_a_tool_call_is_parsed_and_the_next_turn_goes_on_from_the_same_tokens(
    engine: Any,
) -> None:
    async with serving(model(engine)) as caller:
        first = await caller.ask(
            asked("What is 5 + 5?"), tools=[ADD], options=GREEDY, deadline_s=300
        )
        (call,) = [item for item in output(first) if item["type"] == "function_call"]
        assert (call["name"], set(json.loads(call["arguments"]))) == ("add", {"a", "b"})
        prompt, generated, _ = ids(first)
        history = [*asked("What is 5 + 5?"), *output(first)]
        told = {"type": "function_call_output", "call_id": call["call_id"], "output": "10"}
        second = await caller.ask(
            [*history, told],
            tools=[ADD],
            options=GREEDY,
            known=([*prompt, *generated], len(history)),
            deadline_s=300,
        )
    assert ids(second)[0][: len(prompt) + len(generated)] == [*prompt, *generated]
    assert message_text(output(second)[-1]).startswith("The answer is ")


async def test_sampled_tokens_that_the_server_would_tokenise_otherwise_are_kept(
    engine: Any,
) -> None:
    history = [*asked("hi"), {"type": "message", "role": "assistant", "content": "The answer"}]
    async with serving(model(engine)) as caller:
        first = await caller.ask(asked("hi"), options=GREEDY, deadline_s=300)
        prompt, _, _ = ids(first)
        by_letter = await tokens_of(engine, "The answer")
        known = [*prompt, *by_letter, await end_token(engine)]
        second = await caller.ask(
            [*history, *asked("more")],
            options=GREEDY,
            known=(known, len(history)),
            deadline_s=300,
        )
    assert ids(second)[0][: len(known)] == known


async def tokens_of(engine: Any, text: str) -> list[int]:
    """One token a letter, which no tokeniser of whole words gives."""
    return [(await tokenised(engine, letter))[0] for letter in text]


async def end_token(engine: Any) -> int:
    return (await tokenised(engine, "<|im_end|>"))[0]


async def tokenised(engine: Any, text: str) -> list[int]:
    body = {"model": "tiny", "prompt": text, "add_special_tokens": False}
    root = engine.url.removesuffix("/v1")
    async with aiohttp.ClientSession() as session, session.post(root + "/tokenize", json=body) as a:
        found: list[int] = (await a.json())["tokens"]
        return found


@pytest.mark.parametrize(("mode", "version"), [("keep", 11), ("wait", 12), ("abort", 13)])
async def test_new_weights_under_load_lose_nothing_and_are_named(
    engine: Any, mode: PauseMode, version: int
) -> None:
    shared = MemoryShared()
    folder = engine.weights / ("1" if version % 2 else "2")
    async with serving(model(engine, max_concurrency=8), shared=shared) as caller:
        results: list[ModelResult] = []
        ending = asyncio.Event()

        async def load(n: int) -> None:
            while not ending.is_set():
                options = {"temperature": 1.0, "max_output_tokens": 200}
                results.append(
                    await caller.ask(
                        asked(f"go {n}"), options=options, rollout=f"r.g/{n}/0", deadline_s=300
                    )
                )

        async with asyncio.TaskGroup() as group:
            for n in range(8):
                group.create_task(load(n))
            await asyncio.sleep(1)
            await update_policy(caller.broker, shared, "m", version, str(folder), mode=mode)
            after = len(results) + 24
            while len(results) < after:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            ending.set()
        sampled = await caller.ask(asked("last"), options=GREEDY, deadline_s=300)
    assert all(result.error is None for result in results)
    assert sampled.versions is not None
    assert (sampled.versions.min, sampled.versions.max) == (version, version)
    prompt, generated, logprobs = ids(sampled)
    (wanted,) = await asyncio.to_thread(forward, folder, [(prompt, generated)])
    assert logprobs == pytest.approx(wanted, abs=1e-4), "they are the new weights"
