"""What outlives trainers under test: broker, stores, and workers that do what the test says."""

import asyncio
from array import array
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from broker import codec
from broker.base import Delivery, Outgoing
from broker.journal.memory import MemoryJournal, MemoryRuns
from broker.memory import MemoryBroker
from broker.messages import (
    CallRecord,
    Failure,
    ModelResult,
    Result,
    Task,
    Tokens,
    Trajectory,
    Usage,
    Verdict,
)
from broker.topology import RESULT, result_key, run_results_queue, task_queue
from producers.rollouts import FinishedRollout, RolloutGroup
from producers.trainer import TrainerClient

DEADLINE_S = 20.0
RUN: dict[str, Any] = {"run": "run", "environment": "calculator", "model": "m"}
TASKS = task_queue("normal", "calculator")
RESULTS = run_results_queue("trainer", "run")


def finished(task: Task, *, reward: float | None = 1.0, error: Failure | None = None) -> Outgoing:
    """The scored rollout of a task, as a verifier publishes it."""
    tokens = Tokens(
        prompt_ids=array("i", [1, 2]).tobytes(),
        generated_ids=array("i", [3]).tobytes(),
        logprobs=array("f", [-0.5]).tobytes(),
    )
    answer = [{"type": "message", "role": "assistant", "content": "4"}]
    call = CallRecord(
        path="0",
        kind="model",
        new_items=(codec.pack({"role": "user", "content": "2+2?"}),),
        result=codec.pack(
            ModelResult(
                items=codec.pack(answer),
                tokens=tokens,
                usage=Usage(prompt_tokens=2, generated_tokens=1),
            )
        ),
    )
    trajectory = Trajectory(
        task=codec.pack(task),
        rollout=task.journal_key,
        epoch="e",
        attempt=1,
        status="completed" if error is None else "failed",
        error=error,
        calls=(codec.pack(call),),
        main="0",
        prompt_items=1,
    )
    result = Result(
        rollout_id=task.rollout_id,
        task_index=task.task_index,
        repeat=task.repeat,
        run=task.run,
        generation=task.generation,
        trajectory=codec.pack(trajectory),
        verdict=Verdict(reward=reward, components=() if reward is None else (("ok", reward),)),
    )
    return Outgoing(
        exchange=RESULT.name,
        key=result_key("trainer", task.run, 0),
        body=codec.encode(result),
        kind=codec.kind_of(Result),
    )


class World:
    """A broker and stores that outlive trainers, and workers that do what the test says."""

    def __init__(self) -> None:
        self.broker = MemoryBroker()
        self.journal = MemoryJournal()
        self.runs = MemoryRuns()
        self.tasks: list[Task] = []
        self._arrived = asyncio.Event()

    @asynccontextmanager
    async def trainer(self, **options: Any) -> AsyncGenerator[TrainerClient]:
        """A trainer process with a connection of its own."""
        broker = self.broker.connect()
        try:
            async with (
                asyncio.timeout(DEADLINE_S),
                TrainerClient.connect(
                    broker, self.journal, self.runs, **{**RUN, **options}
                ) as client,
            ):
                yield client
        finally:
            await broker.close()

    @asynccontextmanager
    async def workers(self) -> AsyncGenerator[None]:
        """Takes every task for as long as the test likes."""
        await self.broker.declare([TASKS])
        async with self.broker.consume(TASKS.name, 1000, self._take):
            yield

    def _take(self, delivery: Delivery) -> None:
        self.tasks.append(codec.decode(Task, delivery.body, delivery.kind))
        delivery.ack()
        self._arrived.set()

    async def have(self, count: int) -> list[Task]:
        """All tasks so far, once there are so many."""
        while len(self.tasks) < count:
            self._arrived.clear()
            await self._arrived.wait()
        return self.tasks

    async def finish(self, task: Task, **outcome: Any) -> None:
        """Publish its result."""
        await self.broker.publish(finished(task, **outcome))

    async def left(self) -> int:
        """Results that wait for a trainer."""
        depth = await self.broker.depth(RESULTS.name)
        assert depth is not None
        return depth.ready


async def first(client: TrainerClient) -> FinishedRollout:
    """The next rollout."""
    return await anext(client.rollouts())


async def first_group(client: TrainerClient) -> RolloutGroup:
    """The next group."""
    return await anext(client.groups())
