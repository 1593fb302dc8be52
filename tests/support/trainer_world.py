"""What outlives trainers under test: broker, stores, and workers that do what the test says."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from broker import codec
from broker.base import Delivery, Outgoing
from broker.journal.memory import MemoryJournal, MemoryRuns
from broker.memory import MemoryBroker
from broker.messages import Failure, Result, Task, Usage, Verdict
from broker.topology import RESULT, result_key, run_results_queue, task_queue
from producers.rollouts import FinishedRollout, RolloutGroup
from producers.trainer import TrainerClient
from tests.support.rollouts import model_call, result_of, said, tokens

DEADLINE_S = 20.0
RUN: dict[str, Any] = {"run": "run", "environment": "calculator", "model": "m"}
TASKS = task_queue("normal", "calculator")
RESULTS = run_results_queue("trainer", "run")


#: One step, with tokens.
_ONE_STEP = model_call(
    "0",
    [said("user", "2+2?")],
    [said("assistant", "4")],
    tokens=tokens([1, 2], [3]),
    usage=Usage(prompt_tokens=2, generated_tokens=1),
)


def finished(task: Task, *, reward: float | None = 1.0, error: Failure | None = None) -> Outgoing:
    """The scored rollout of a task, as a verifier publishes it."""
    verdict = Verdict(reward=reward, components=() if reward is None else (("ok", reward),))
    result = result_of(
        task, calls=(_ONE_STEP,), main="0", prompt_items=1, error=error, verdict=verdict
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
