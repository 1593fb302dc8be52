"""The gateway with a real vLLM, as a server and inside: tokens, logprobs, tool calls, weights."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from broker.messages import ModelResult
from broker.shared.base import PauseMode, PolicyUpdateFailed
from producers.policy import update_policy
from tests.support.gateway import output
from tests.support.real_vllm import GREEDY, asked, forward, ids
from workers.spec import Item, message_text

pytestmark = [pytest.mark.timeout(2400), pytest.mark.asyncio(loop_scope="session")]

#: What the model was taught to call, in the Responses form.
ADD: Item = {"type": "function"} | json.loads(
    (Path(__file__).parent / "add_tool.json").read_text(encoding="utf-8")
)


async def test_ids_and_logprobs_are_those_of_a_forward_pass(served: Any) -> None:
    results = [
        await served.caller.ask(
            asked(f"What is {n} + {n}?"),
            options={"temperature": 1.0, "max_output_tokens": 40},
            rollout=f"run.g/{n}/0",
            deadline_s=300,
        )
        for n in range(6)
    ]
    samples = [ids(result) for result in results]
    expected = await asyncio.to_thread(
        forward, served.weights / "tiny", [(prompt, out) for prompt, out, _ in samples]
    )
    for (_, out, logprobs), wanted in zip(samples, expected, strict=True):
        assert len(out) == len(logprobs) > 0
        assert logprobs == pytest.approx(wanted, abs=1e-4)


async def test_a_tool_call_is_parsed_and_the_next_turn_goes_on_from_the_same_tokens(
    served: Any,
) -> None:
    first = await served.caller.ask(
        asked("What is 5 + 5?"), tools=[ADD], options=GREEDY, deadline_s=300
    )
    (call,) = [item for item in output(first) if item["type"] == "function_call"]
    assert (call["name"], set(json.loads(call["arguments"]))) == ("add", {"a", "b"})
    prompt, generated, _ = ids(first)
    history = [*asked("What is 5 + 5?"), *output(first)]
    told = {"type": "function_call_output", "call_id": call["call_id"], "output": "10"}
    second = await served.caller.ask(
        [*history, told],
        tools=[ADD],
        options=GREEDY,
        known=([*prompt, *generated], len(history)),
        deadline_s=300,
    )
    assert ids(second)[0][: len(prompt) + len(generated)] == [*prompt, *generated]
    assert message_text(output(second)[-1]).startswith("The answer is ")


async def test_sampled_tokens_that_the_server_would_tokenise_otherwise_are_kept(
    served: Any,
) -> None:
    history = [*asked("hi"), {"type": "message", "role": "assistant", "content": "The answer"}]
    first = await served.caller.ask(asked("hi"), options=GREEDY, deadline_s=300)
    prompt, _, _ = ids(first)
    known = [*prompt, *tokens_of(served.weights / "tiny", *"The answer", "<|im_end|>")]
    second = await served.caller.ask(
        [*history, *asked("more")],
        options=GREEDY,
        known=(known, len(history)),
        deadline_s=300,
    )
    assert ids(second)[0][: len(known)] == known


def tokens_of(weights: Path, *texts: str) -> list[int]:
    """Each tokenised for itself, which no tokeniser of whole words does."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(weights)
    return [n for text in texts for n in tokenizer.encode(text, add_special_tokens=False)]


async def test_calls_that_are_cut_end_in_the_engine_too(served: Any) -> None:
    (endpoint,) = served.caller.gateway.pools["m"].endpoints
    before = await generated_tokens(endpoint)
    options = {"max_output_tokens": 1900, "extra_body": {"ignore_eos": True}}
    async with asyncio.TaskGroup() as group:
        cut = [
            group.create_task(
                served.caller.ask(
                    asked("go"), options=options, rollout=f"cut.g/{n}/0", deadline_s=0.7
                )
            )
            for n in range(8)
        ]
    assert all("deadline" in task.result().error.message for task in cut)
    async with asyncio.timeout(120):
        while (await endpoint.backend.load()).running:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    assert await generated_tokens(endpoint) - before < 8 * 1900


async def generated_tokens(endpoint: Any) -> float:
    """Of all requests so far, as the engine counts."""
    lines = (await endpoint.backend.metrics()).splitlines()
    found = [li for li in lines if li.startswith("vllm:generation_tokens_total")]
    return sum(float(line.rpartition(" ")[2]) for line in found)


async def test_new_weights_forget_the_prefixes_of_old_ones(served: Any) -> None:
    question = asked("What is 1 + 1? " * 60)
    caller = served.caller

    async def ask() -> ModelResult:
        result: ModelResult = await caller.ask(question, options=GREEDY, deadline_s=300)
        return result

    await ask()
    assert (await ask()).usage.cached_tokens > 0
    await update_policy(caller.broker, served.shared, "m", 10, str(served.weights / "2"))
    after = await ask()
    assert after.usage.cached_tokens == 0
    prompt, generated, logprobs = ids(after)
    (wanted,) = await asyncio.to_thread(forward, served.weights / "2", [(prompt, generated)])
    assert logprobs == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize(("mode", "version"), [("keep", 11), ("wait", 12), ("abort", 13)])
async def test_new_weights_under_load_lose_nothing_and_are_named(
    served: Any, mode: PauseMode, version: int
) -> None:
    caller, shared = served.caller, served.shared
    folder = served.weights / ("1" if version % 2 else "2")
    results: list[ModelResult] = []
    ending = asyncio.Event()

    async def load(n: int) -> None:
        options = {"temperature": 1.0, "max_output_tokens": 200}
        while not ending.is_set():
            results.append(
                await caller.ask(
                    asked(f"go {n}"), options=options, rollout=f"r.g/{n}/0", deadline_s=300
                )
            )

    async def answered(count: int) -> None:
        while len(results) < count:  # noqa: ASYNC110
            await asyncio.sleep(0.05)

    async with asyncio.TaskGroup() as group:
        for n in range(8):
            group.create_task(load(n))
        await answered(8)
        await update_policy(caller.broker, shared, "m", version, str(folder), mode=mode)
        await answered(len(results) + 24)
        ending.set()
    sampled = await caller.ask(asked("last"), options=GREEDY, deadline_s=300)
    assert all(result.error is None for result in results)
    spans = {(r.versions.min, r.versions.max) for r in results if r.versions is not None}
    assert spans <= {(version - 1, version - 1), (version - 1, version), (version, version)}
    assert sampled.versions is not None
    assert (sampled.versions.min, sampled.versions.max) == (version, version)
    prompt, generated, logprobs = ids(sampled)
    (wanted,) = await asyncio.to_thread(forward, folder, [(prompt, generated)])
    assert logprobs == pytest.approx(wanted, abs=1e-4), "they are the new weights"


async def test_weights_that_are_not_there_fail_the_update_and_the_old_ones_go_on(
    served: Any,
) -> None:
    caller, shared, folder = served.caller, served.shared, served.weights / "1"
    await update_policy(caller.broker, shared, "m", 14, str(folder))
    with pytest.raises(PolicyUpdateFailed, match="version 15"):
        await update_policy(caller.broker, shared, "m", 15, str(served.weights / "nothing"))
    result = await caller.ask(asked("still"), options=GREEDY, deadline_s=300)
    assert (result.versions.min, result.versions.max) == (14, 14)
    prompt, generated, logprobs = ids(result)
    (wanted,) = await asyncio.to_thread(forward, folder, [(prompt, generated)])
    assert logprobs == pytest.approx(wanted, abs=1e-4)
