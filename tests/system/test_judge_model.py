"""`--judge-model`: a run names its own judge, and a run with another judge is another run."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from broker import codec
from broker.base import Delivery
from broker.messages import Task
from broker.topology import Lane, model_queue, task_queue
from tests.conftest import Names
from tests.support.command import by_request, echo, provider, rows_of, warren, write_rows
from tests.support.provider import Behaviour
from tests.support.services import Server
from warren import TrainerClient
from warren.connections import connect
from warren.settings import load

ENVIRONMENT = """
from warren import Environment, quality

env = Environment("essay", judge_model="scripted")
env.reward(name="kind")(quality("{answer}", {"kind": "it is friendly"}, votes=3))


@env.policy
def scripted(request):
    if request.path.startswith("verify"):
        return '{"scores": {"kind": 1}}'
    return "You are welcome."
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "essay.py").write_text(ENVIRONMENT, encoding="utf-8")
    write_rows(tmp_path / "tasks.jsonl", [{"prompt": "Write."}])
    return tmp_path


def judged_by_scores(value: int) -> Behaviour:
    text = json.dumps({"reason": "warm", "scores": {"kind": value}})
    return by_request(lambda body: echo({**body, "messages": [{"role": "user", "content": text}]}))


def test_a_run_names_its_judge_and_so_does_reverify(folder: Path) -> None:
    run = ("collect", "tasks.jsonl", "--env", "essay.py", "--model", "scripted", "-o", "rows.jsonl")
    again = ("reverify", "rows.jsonl", "--env", "essay.py", "-o", "again.jsonl")
    warren(*run, cwd=folder).ok()
    assert rows_of(folder / "rows.jsonl")[0]["reward"] == pytest.approx(0.1)
    with provider(judged_by_scores(7)) as judge:
        named = ("--judge-model", "big", "--judge-base-url", judge.url)
        other = warren(*run, *named, cwd=folder)
        assert (other.code, "its prompting is" in other.err) == (2, True), other.err
        for words, output in (((*run, "--overwrite"), "rows.jsonl"), (again, "again.jsonl")):
            warren(*words, *named, cwd=folder).ok()
            assert rows_of(folder / output)[0]["reward"] == pytest.approx(0.7)
        assert [seen.json["model"] for seen in judge.seen] == ["big"] * 6


async def test_enqueue_and_trainers_name_it_in_every_task_and_make_its_queue(
    folder: Path, rabbitmq: Server, redis_server: Server, fresh_names: Names
) -> None:
    place: dict[str, Any] = {"broker": rabbitmq.url, "redis": redis_server.url}
    variables = {"WARREN_BROKER": rabbitmq.url, "WARREN_REDIS": redis_server.url}
    run, name = fresh_names.run, fresh_names.environment
    text = ENVIRONMENT.replace('"essay"', f'"{name}"')
    (folder / "essay.py").write_text(text, encoding="utf-8")
    judge = f"judge-{name}"
    words = ("enqueue", "tasks.jsonl", "--env", "essay.py", "--model", "scripted", "--run", run)
    await asyncio.to_thread(
        lambda: warren(*words, "--judge-model", judge, cwd=folder, **variables).ok()
    )
    other = await asyncio.to_thread(lambda: warren(*words, cwd=folder, **variables))
    assert other.code == 2, other.err
    assert "exists" in other.err

    submitted: dict[str, Any] = {
        "run": f"{run}-t",
        "environment": name,
        "model": "m",
        "judge_model": judge + "2",
    }
    async with TrainerClient.open(**submitted, **place) as client:
        await client.submit("Write.")
        await client.submit("Write again.")

    seen: asyncio.Queue[Task] = asyncio.Queue()

    def take(delivery: Delivery) -> None:
        seen.put_nowait(codec.decode(Task, delivery.body, delivery.kind))
        delivery.ack()

    async with connect(load(place).settings) as at, asyncio.timeout(20):
        waiting: list[tuple[Lane, int, str]] = [("bulk", 1, judge), ("normal", 2, judge + "2")]
        for lane, count, expected in waiting:
            assert await at.broker.depth(model_queue("normal", expected).name) is not None
            async with at.broker.consume(task_queue(lane, name).name, 10, take):
                assert [(await seen.get()).judge_model for _ in range(count)] == [expected] * count
