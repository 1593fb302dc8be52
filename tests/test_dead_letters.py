"""Dead letters are settled: whoever waits hears of it, and every task still ends as a row."""

import asyncio
import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from broker import codec
from broker.base import Delivery, Outgoing
from broker.journal.base import Run
from broker.journal.memory import MemoryJournal, MemoryRuns
from broker.memory import MemoryBroker
from broker.messages import Failure, ModelResult, Reply, Result, Task, ToolResult, Trajectory
from broker.serve import QUEUE_HEADER, REASON_HEADER
from broker.topology import (
    DEAD,
    dead_queue,
    inbox,
    kept_queue,
    result_key,
    run_results_queue,
    task_queue,
)
from sinks.dead_letters import KEY_HEADER, SETTLES_HEADER
from sinks.jsonl import JsonlFile
from sinks.roles import collect_into, settle_dead_letters
from sinks.rows import row_for
from tests.support.calls import model_call, tool_call
from tests.support.rollouts import result

RESULTS = run_results_queue("collect", "run-a")
OWNER = "agent-1"
INBOX = inbox(OWNER)
TASK = Task(
    run="run-a",
    generation="g1",
    task_index=0,
    repeat=0,
    environment="calculator",
    model="tiny",
    row=b'{"question": "?"}',
    audiences=("collect", "gone-trainer"),
)
MODEL = "warren.q.v1.model.normal.tiny"


class Bench:
    """A broker with dead letters in it, and what came of them."""

    def __init__(self) -> None:
        self.broker = MemoryBroker()
        self.journal = MemoryJournal()
        self.runs = MemoryRuns()

    async def dies(self, message: object, key: str = "k", kind: str | None = None) -> None:
        body = message if isinstance(message, bytes) else codec.encode(message)
        await self.broker.publish(
            Outgoing(
                exchange=DEAD.name,
                key=key,
                body=body,
                kind=kind or codec.kind_of(type(message)),
                headers={REASON_HEADER: "it broke", QUEUE_HEADER: MODEL},
            )
        )

    async def settle(self) -> None:
        """Run until every dead letter is kept."""
        letters = await self.ready(dead_queue().name) + await self.ready(kept_queue().name)
        broker, stop = self.broker.connect(), asyncio.Event()
        task = asyncio.create_task(settle_dead_letters(broker, self.journal, stop=stop))
        for _ in range(2000):
            if await self.ready(kept_queue().name) >= letters:
                break
            await asyncio.sleep(0.005)
        stop.set()
        async with asyncio.timeout(20):
            await task
        await broker.close()
        assert await self.ready(dead_queue().name) == 0

    async def ready(self, queue: str) -> int:
        depth = await self.broker.depth(queue)
        assert depth is not None
        return depth.ready

    async def get(self, queue: str) -> Delivery:
        got: asyncio.Future[Delivery] = asyncio.get_running_loop().create_future()
        async with asyncio.timeout(20), self.broker.consume(queue, 1, got.set_result):
            delivery = await got
        delivery.ack()
        return delivery

    async def row(self) -> dict[str, Any]:
        """The row that its collector would write."""
        assert await self.ready(RESULTS.name) == 1
        letter = await self.get(RESULTS.name)
        row = json.loads(row_for(codec.decode(Result, letter.body, letter.kind)).data)
        assert isinstance(row, dict)
        return row

    async def owns(self) -> str:
        """Let a living agent own the rollout; the epoch."""
        await self.journal.renew_lease(OWNER)
        taken = await self.journal.take(TASK.journal_key, OWNER)
        assert isinstance(taken, Run)
        return taken.epoch


@pytest.fixture
async def bench() -> AsyncGenerator[Bench]:
    made = Bench()
    await made.broker.declare([RESULTS, INBOX, dead_queue(), kept_queue()])
    yield made
    await made.journal.close()
    await made.broker.close()


def of_the_task(epoch: str) -> dict[str, Any]:
    """What makes a call one of TASK's rollout, whose owner waits."""
    return {"rollout": TASK.journal_key, "epoch": epoch, "reply_to": OWNER}


async def test_a_dead_task_becomes_a_failed_row(bench: Bench) -> None:
    await bench.dies(TASK)
    await bench.settle()
    row = await bench.row()
    assert row["reward"] is None
    assert row["question"] == "?"
    assert row["warren"]["error"] == {"kind": "infra", "message": "it broke", "where": MODEL}
    taken = await bench.journal.take(TASK.journal_key, "agent-2")
    assert isinstance(taken, Run)
    assert taken.ended


async def test_a_dead_task_whose_rollout_is_being_run_is_only_kept(bench: Bench) -> None:
    await bench.owns()
    await bench.dies(TASK)
    await bench.settle()
    assert await bench.ready(RESULTS.name) == 0


@pytest.mark.parametrize("phase", ["ended", "committed"])
async def test_a_dead_task_that_is_over_is_only_kept(bench: Bench, phase: str) -> None:
    epoch = await bench.owns()
    await bench.journal.ended(TASK.journal_key, epoch)
    if phase == "committed":
        await bench.journal.committed([TASK.journal_key])
    await bench.journal.end_lease(OWNER)
    await bench.dies(TASK)
    await bench.settle()
    assert await bench.ready(RESULTS.name) == 0


async def test_a_dead_model_call_gives_its_owner_an_error_result(bench: Bench) -> None:
    epoch = await bench.owns()
    await bench.dies(model_call(**of_the_task(epoch)))
    await bench.settle()
    letter = await bench.get(INBOX.name)
    reply = codec.decode(Reply, letter.body, letter.kind)
    error = codec.read(ModelResult, reply.result).error
    assert error == Failure(kind="infra", message="it broke", where=MODEL)
    taken = await bench.journal.take(TASK.journal_key, OWNER)
    assert isinstance(taken, Run)
    assert taken.results["0"].result == reply.result


async def test_a_dead_tool_call_tells_the_model(bench: Bench) -> None:
    epoch = await bench.owns()
    call = tool_call(**of_the_task(epoch))
    await bench.dies(call)
    await bench.dies(call)
    await bench.settle()
    letter = await bench.get(INBOX.name)
    told = codec.read(ToolResult, codec.decode(Reply, letter.body, letter.kind).result)
    assert told.output == "error: it broke"


async def test_a_dead_call_of_an_old_attempt_is_only_kept(bench: Bench) -> None:
    await bench.owns()
    await bench.dies(model_call(**of_the_task("old")))
    await bench.settle()
    assert await bench.ready(INBOX.name) == 0


async def test_a_dead_trajectory_is_a_failed_row_that_carries_it(bench: Bench) -> None:
    await bench.dies(codec.read(Trajectory, result().trajectory))
    await bench.settle()
    row = await bench.row()
    assert row["reward"] is None
    assert row["warren"]["error"]["kind"] == "verifier"
    assert len(row["response"]["output"]) == 4


@pytest.mark.parametrize("chars", [10, 40_000])
async def test_a_dead_result_is_a_failed_row_of_its_audience(bench: Bench, chars: int) -> None:
    text = "x" * chars
    dead = result(row=json.dumps({"question": text}).encode())
    on_its_way = codec.encode(codec.read(Trajectory, dead.trajectory))
    dead = msgspec.structs.replace(dead, trajectory=on_its_way)
    await bench.dies(dead, key=result_key("collect", "run-a", 1))
    await bench.settle()
    row = await bench.row()
    assert row["question"] == text
    assert row["warren"]["error"]["message"] == "it broke"
    assert row["warren"]["calls"] == []


async def test_a_settlement_that_dies_is_only_kept(bench: Bench) -> None:
    await bench.broker.publish(
        Outgoing(
            exchange=DEAD.name,
            key=result_key("collect", "run-a", 1),
            body=codec.encode(result()),
            kind=codec.kind_of(Result),
            headers={SETTLES_HEADER: 1},
        )
    )
    await bench.settle()
    assert await bench.ready(RESULTS.name) == 0


async def test_what_nobody_can_read_is_kept_as_it_came_with_its_reason(bench: Bench) -> None:
    await bench.dies(b"\xc1junk", key="somewhere", kind="task.v1")
    await bench.dies(b"?", kind="unheard.v9")
    await bench.settle()
    letter = await bench.get(kept_queue().name)
    assert (letter.body, letter.kind) == (b"\xc1junk", "task.v1")
    assert letter.headers[REASON_HEADER] == "it broke"
    assert letter.headers[QUEUE_HEADER] == MODEL
    assert letter.headers[KEY_HEADER] == "somewhere"


async def test_what_the_broker_itself_gave_up_on_is_settled_too(bench: Bench) -> None:
    queue = task_queue("normal", "calculator")
    await bench.broker.declare([queue])
    headers = {"x-first-death-reason": "delivery_limit", "x-first-death-queue": queue.name}
    await bench.broker.publish(
        Outgoing(DEAD.name, "normal.calculator", codec.encode(TASK), "task.v1", headers)
    )
    await bench.settle()
    error = (await bench.row())["warren"]["error"]
    assert (error["message"], error["where"]) == ("delivery_limit", queue.name)


async def test_a_collector_settles_and_writes_the_row(bench: Bench, tmp_path: Path) -> None:
    await bench.dies(TASK)
    stop = asyncio.Event()
    output = JsonlFile(tmp_path / "x.jsonl")
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        group.create_task(
            collect_into(
                output,
                bench.broker,
                bench.journal,
                bench.runs,
                run="run-a",
                generation="g1",
                stop=stop,
                on_committed=lambda rows: stop.set() if rows else None,
            )
        )
    assert output.totals.failed_by_kind == {"infra": 1}
