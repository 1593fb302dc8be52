"""Two real vLLM servers behind a gateway: LoRA adapters, stickiness, one killed and restarted."""

import asyncio
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from broker.messages import ModelResult, VersionSpan
from broker.shared.memory import MemoryShared
from producers.policy import update_policy
from tests.support.gateway import Caller, serving
from tests.support.real_vllm import (
    GREEDY,
    asked,
    forward,
    ids,
    model_at,
    python,
    started,
    until_healthy,
)

pytestmark = pytest.mark.timeout(2400)

LORA = ("--enable-lora", "--max-lora-rank", "8")
ROLLOUTS = 8


@dataclass(frozen=True, slots=True)
class Replica:
    url: str
    process: "subprocess.Popen[bytes]"
    log: Path


@pytest.fixture(scope="module")
def adapters(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with adapters `1` and `2`, and what they make of the tiny model: `merged-1`, ..."""
    folder = tmp_path_factory.mktemp("adapters")
    script = Path(__file__).with_name("adapter.py")
    python(script, weights / "tiny", folder, 1, 2)
    return folder


@pytest.fixture(scope="module")
def replicas(
    weights: Path, adapters: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Replica]]:
    """Two servers of the same model, which start at the same time."""
    folder = tmp_path_factory.mktemp("engines")
    flags = (*LORA, "--lora-modules", f"adapter={adapters / '1'}")
    with ExitStack() as stack:
        found = [
            Replica(*stack.enter_context(started(weights / "tiny", folder, *flags)))
            for _ in range(2)
        ]
        for replica in found:
            until_healthy(replica.url, replica.process, replica.log)
        yield found


async def test_an_update_puts_another_lora_adapter_in_the_place_of_the_one_that_is_asked(
    replicas: list[Replica], adapters: Path
) -> None:
    shared = MemoryShared()
    model = model_at(*(r.url for r in replicas), served_name="adapter", lora=True)
    async with serving(model, shared=shared) as caller:
        before = await ask(caller)
        await update_policy(caller.broker, shared, "m", 2, str(adapters / "2"))
        after = await ask(caller)
    for n, answers in ((1, before), (2, after)):
        samples = [ids(answer) for answer in answers.values()]
        wanted = await asyncio.to_thread(
            forward, adapters / f"merged-{n}", [(prompt, out) for prompt, out, _ in samples]
        )
        for (_, _, logprobs), expected in zip(samples, wanted, strict=True):
            assert logprobs == pytest.approx(expected, abs=1e-4)
    assert {answer.versions.max for answer in after.values() if answer.versions} == {2}


async def test_a_killed_replica_loses_its_rollouts_until_it_is_back_with_the_present_weights(
    replicas: list[Replica], weights: Path, tmp_path: Path
) -> None:
    killed, other = replicas
    shared = MemoryShared()
    async with serving(model_at(killed.url, other.url), shared=shared) as caller:
        await update_policy(caller.broker, shared, "m", 3, str(weights / "1"))
        counts = await shares(caller)
        assert min(counts.values()) > 0, "both are used"
        again = await ask(caller)
        assert requests(caller) == {url: 2 * n for url, n in counts.items()}
        assert all(r.usage.cached_tokens > 0 for r in again.values()), "each where its prefix is"
        os.killpg(killed.process.pid, signal.SIGKILL)
        moved = await ask(caller)
        assert all(r.error is None for r in moved.values())
        port = int(killed.url.rpartition(":")[2].removesuffix("/v1"))
        with started(weights / "tiny", tmp_path, *LORA, port=port) as back:
            await asyncio.to_thread(until_healthy, *back)
            async with asyncio.timeout(300):  # it gets few calls at first
                while await shares(caller) != counts:
                    pass
            await sampled_by(weights / "1", 3, await ask(caller))


async def sampled_by(weights: Path, version: int, answers: Mapping[str, ModelResult]) -> None:
    """Whether all that they are named by is true."""
    assert {r.versions for r in answers.values()} == {VersionSpan(min=version, max=version)}
    samples = [ids(answer) for answer in answers.values()]
    wanted = await asyncio.to_thread(
        forward, weights, [(prompt, out) for prompt, out, _ in samples]
    )
    for (_, _, logprobs), expected in zip(samples, wanted, strict=True):
        assert logprobs == pytest.approx(expected, abs=1e-4)


async def shares(caller: Caller) -> dict[str, int]:
    """How many of the rollouts each endpoint gets; none is answered with older weights."""
    before = requests(caller)
    answers = await ask(caller)
    assert {r.versions for r in answers.values()} == {VersionSpan(min=3, max=3)}
    return {url: count - before[url] for url, count in requests(caller).items()}


async def ask(caller: Caller) -> Mapping[str, ModelResult]:
    """One call of each rollout, all at once, with a prompt of several cache blocks."""
    async with asyncio.TaskGroup() as group:
        tasks = {
            rollout: group.create_task(
                caller.ask(
                    asked(f"{rollout} " + "What is 1 + 1? " * 40),
                    options=GREEDY,
                    rollout=rollout,
                    deadline_s=300,
                )
            )
            for rollout in (f"r.g/{n}/0" for n in range(ROLLOUTS))
        }
    return {rollout: task.result() for rollout, task in tasks.items()}


def requests(caller: Caller) -> dict[str, int]:
    """Requests that each endpoint got so far."""
    return {s.url: s.requests for s in caller.gateway.endpoints()["m"]}
