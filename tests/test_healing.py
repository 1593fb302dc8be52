"""A run whose messages the broker lost is published again, and only then."""

import asyncio
from collections.abc import Callable

from broker import codec
from broker.base import Delivery
from broker.journal.memory import MemoryRuns
from broker.memory import MemoryBroker
from broker.messages import Task
from broker.topology import task_queue
from producers.datasets import TaskLine
from producers.healing import heal
from producers.publisher import Publisher, queues_for, remaining

QUEUES = queues_for("env", "r", ["test"])
LINES = [TaskLine(index, b"{}") for index in range(5)]


def _publisher(broker: MemoryBroker) -> Publisher:
    template = Task(
        run="r",
        generation="g",
        task_index=0,
        repeat=0,
        environment="env",
        model="m",
        row=b"",
        audiences=("test",),
    )
    return Publisher(broker, MemoryRuns(), template, queues=QUEUES, window=10)


def _hearing(heard: list[int], until: int, done: asyncio.Event) -> Callable[[Delivery], None]:
    def hear(delivery: Delivery) -> None:
        heard.append(codec.decode(Task, delivery.body, delivery.kind).task_index)
        delivery.ack()
        if len(heard) == until:
            done.set()

    return hear


async def test_tasks_that_a_broker_lost_are_published_again() -> None:
    broker = MemoryBroker()
    publisher = _publisher(broker)
    await publisher.publish(remaining(LINES, 1))
    publisher.committed(0, 0)
    tasks = task_queue("normal", "env")
    await broker.delete(tasks.name)  # what a purge by hand does
    await broker.declare([tasks])
    heard: list[int] = []
    done = asyncio.Event()
    healing = asyncio.create_task(
        heal(broker, publisher, QUEUES, lambda: remaining(LINES, 1), lambda: 1, stall_s=0.05)
    )
    async with broker.consume(tasks.name, 10, _hearing(heard, 4, done)), asyncio.timeout(5):
        await done.wait()
    healing.cancel()
    assert sorted(heard)[:4] == [1, 2, 3, 4]


async def test_a_run_with_work_in_its_queues_is_left_alone() -> None:
    broker = MemoryBroker()
    publisher = _publisher(broker)
    await publisher.publish(remaining(LINES, 1))
    looked = asyncio.Event()

    def safe() -> int:
        looked.set()
        return 0

    healing = asyncio.create_task(
        heal(broker, publisher, QUEUES, lambda: remaining(LINES, 1), safe, stall_s=0.01)
    )
    async with asyncio.timeout(5):
        for _ in range(10):
            looked.clear()
            await looked.wait()
    healing.cancel()
    depth = await broker.depth(task_queue("normal", "env").name)
    assert depth is not None
    assert depth.ready == len(LINES)
