"""The trainer's client: rows go out, scored rollouts and whole groups come back, in a window."""

import asyncio
import json
from typing import Any

import pytest

from broker.messages import Failure
from broker.shared.memory import MemoryShared
from producers.checks import BadRow
from producers.run_record import RunConflict
from producers.trainer import TrainerClient
from tests.support import vllm_server
from tests.support.gateway import config, serving
from tests.support.trainer_world import RUN, World, first, first_group


async def test_a_submitted_row_comes_back_scored_with_its_tokens() -> None:
    world = World()
    async with world.workers(), world.trainer() as client:
        sent = await client.submit({"prompt": "2+2?", "answer": "4"})
        assert sent == (0, "run/0")
        (task,) = await world.have(1)
        assert json.loads(task.row)["responses_create_params"] == {"input": "2+2?"}
        await world.finish(task, reward=0.5)
        rollout = await first(client)
    assert (rollout.rollout_id, rollout.group_id, rollout.status) == (
        "run/0/0",
        "run/0",
        "completed",
    )
    assert (rollout.reward, rollout.reward_components) == (0.5, {"ok": 0.5})
    assert [item["content"] for item in rollout.prompt + rollout.output] == ["2+2?", "4"]
    (segment,) = rollout.segments
    assert (segment.ids.tolist(), segment.mask.tolist()) == ([1, 2, 3], [0, 0, 1])
    assert segment.logprobs.tolist() == [0.0, 0.0, -0.5]


@pytest.mark.parametrize("row", ["2+2?", [{"role": "user", "content": "2+2?"}]])
async def test_a_bare_prompt_is_a_row(row: Any) -> None:
    world = World()
    async with world.workers(), world.trainer() as client:
        await client.submit(row)
        (task,) = await world.have(1)
    assert json.loads(task.row)["responses_create_params"]["input"] == row


async def test_a_bad_row_is_refused_and_costs_no_index() -> None:
    world = World()
    async with world.workers(), world.trainer() as client:
        with pytest.raises(BadRow):
            await client.submit({"question": "?"})
        assert (await client.submit("?")).task_index == 0


async def test_a_group_comes_when_its_last_rollout_has_whatever_their_fates() -> None:
    world = World()
    async with world.workers(), world.trainer(repeats=3) as client:
        await client.submit("?")
        tasks = list(await world.have(3))
        failure = Failure(kind="infra", message="lost")
        await world.finish(tasks[2], reward=None, error=failure)
        await world.finish(tasks[0])
        waiting = asyncio.create_task(first_group(client))
        await first(client)
        await first(client)
        assert not waiting.done()
        await world.finish(tasks[1])
        group = await waiting
    assert [rollout.repeat for rollout in group] == [0, 1, 2]
    assert [rollout.status for rollout in group] == ["completed", "completed", "failed"]
    assert group.rollouts[2].reward is None
    assert group.rollouts[2].error == failure


async def test_the_window_holds_submissions_back_until_an_ack() -> None:
    world = World()
    async with world.workers(), world.trainer(repeats=2, window=3) as client:
        await client.submit("a")
        second = asyncio.create_task(client.submit("b"))
        for task in list(await world.have(2)):
            await world.finish(task)
        group = await first_group(client)
        assert not second.done()
        await client.ack(group.rollouts[0])
        assert (await second).task_index == 1


async def test_a_window_must_hold_a_group() -> None:
    with pytest.raises(ValueError, match="never holds a group of 4"):
        async with World().trainer(repeats=4, window=3):
            pass


async def test_the_iterators_end_after_finish() -> None:
    world = World()
    async with world.workers(), world.trainer(repeats=2) as client:
        await client.submit("?")
        client.finish()
        for task in list(await world.have(2)):
            await world.finish(task)
        assert len([group async for group in client.groups()]) == 1
        assert len([rollout async for rollout in client.rollouts()]) == 2


async def test_a_run_of_another_kind_is_refused() -> None:
    world = World()
    async with world.trainer():
        pass
    with pytest.raises(RunConflict, match="its repeats is 1, now it is 2"):
        async with world.trainer(repeats=2):
            pass


async def test_a_trainer_gives_its_model_new_weights() -> None:
    world, shared = World(), MemoryShared()
    async with (
        vllm_server.running() as engine,
        serving(config(engine.url, api="vllm"), shared=shared) as gateway,
        TrainerClient.connect(
            gateway.broker, world.journal, world.runs, **RUN, shared=shared
        ) as client,
    ):
        await client.update_policy(3, "/weights/3", mode="wait")
        assert (engine.loads, engine.version) == (["/weights/3"], "3")
