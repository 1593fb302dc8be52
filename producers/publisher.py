"""Publishing task instances: in order, pipelined, confirmed, and never more than a window out.

    for each line, for each repeat (aabbcc): wait for room -> publish -> confirmed -> watermark

An instance is *out* from the moment it is taken up until `committed` says that its row is durable.
So an interactive run never floods queues, and a slow sink slows its producer.
"""

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import msgspec

from broker import codec
from broker.base import Broker, Outgoing
from broker.crashpoints import crash_at
from broker.errors import JournalUnavailable
from broker.journal.runs import Runs
from broker.messages import Task
from broker.serve import publish_patiently
from broker.topology import (
    LANES,
    SINK_SHARDS,
    TASK,
    QueueSpec,
    dead_queue,
    kept_queue,
    ladder_queues,
    run_results_queue,
    sink_queue,
    task_key,
    task_queue,
    verify_queue,
)
from producers import bitmap
from producers.datasets import TaskLine

log = logging.getLogger(__name__)

#: Publishes that may wait for their confirmation at once: a confirmation takes milliseconds.
MAX_UNCONFIRMED: Final = 256
#: The watermark is written this often; what lies above it may be published twice after a crash.
REPORT_EVERY_S: Final = 1.0

Id = tuple[int, int]
"""Task index and repeat."""


class Instance(NamedTuple):
    """One task instance that has no row yet."""

    line: TaskLine
    repeat: int
    out: bool = False
    """Published before, and its queues still hold it: only its commit is awaited."""

    @property
    def id(self) -> Id:
        return self.line.index, self.repeat


@dataclass(frozen=True, slots=True)
class Published:
    """How far a producer has come."""

    count: int
    """Instances that the broker has confirmed, in this and in earlier processes."""
    end: int
    """Every repeat of every task with a smaller index has been confirmed."""
    complete: bool
    """Whether that is all."""


def remaining(
    lines: Iterable[TaskLine],
    repeats: int,
    committed: Sequence[bytes] = (),
    watermark: Sequence[int] = (),
) -> Iterator[Instance]:
    """All instances without a durable row, in order: the repeats of a task one after the other.

    `committed` has one bitmap over task indices per repeat (`Runs.committed`). Below `watermark`
    (per repeat; empty: where the broker keeps nothing) they are out already.
    """
    for line in lines:
        for repeat in range(repeats):
            if repeat < len(committed) and bitmap.has(committed[repeat], line.index):
                continue
            out = repeat < len(watermark) and line.index < watermark[repeat]
            yield Instance(line, repeat, out)


class Publisher:
    """Publishes the instances of one run. Tell it about every row that becomes durable."""

    def __init__(
        self,
        broker: Broker,
        runs: Runs,
        template: Task,
        *,
        queues: Sequence[QueueSpec],
        window: int | None,
        published_before: int = 0,
        on_published: Callable[[Published], None] | None = None,
    ) -> None:
        """`template` is every task of the run but for its index, repeat and row.

        `queues` are all that its tasks, trajectories and results will need, every audience's
        included: they exist before the first task does. `window` bounds uncommitted instances
        (None: only the broker's queues do). `published_before` counts the rows that are durable
        already. `on_published` hears of the watermark right before the journal does.
        """
        if window is not None and window < 1:
            raise ValueError(f"window is {window}, at least 1 is needed")
        self._broker = broker
        self._runs = runs
        self._template = template
        self.queues = queues
        self._window = window
        self._on_published = on_published
        self._confirmed = published_before
        self._unconfirmed: dict[Id, None] = {}
        self._out: set[Id] = set()
        self._early: set[Id] = set()
        self._last: Id = (-1, 0)
        self._changed = asyncio.Event()
        self._final: Published | None = None

    @property
    def out(self) -> int:
        """Instances that are published, or about to be, and have no durable row yet.

        Not counted without a window.
        """
        return len(self._out)

    def committed(self, task_index: int, repeat: int) -> None:
        """The row of this instance is durable. Twice is once, and too early is fine."""
        id_ = task_index, repeat
        if id_ > self._last and self._window is not None:
            self._early.add(id_)  # of an earlier process; it will need no room
        self._out.discard(id_)
        self._changed.set()

    async def publish(self, instances: Iterable[Instance] | AsyncIterable[Instance]) -> Published:
        """Publish all `instances`, whose ids must rise, and return when all are confirmed.

        Cancelled, it leaves the watermark at or below what is confirmed. A BrokerError comes out
        in an ExceptionGroup.
        """
        await self._broker.declare(self.queues)
        try:
            async with asyncio.TaskGroup() as group:
                reporting = group.create_task(self._report_regularly())
                await self._publish_all(instances)
                reporting.cancel()
        except BaseException:
            self._tell(self._standing())  # no await: also when cancelled
            raise
        self._final = Published(self._confirmed, self._last[0] + 1, complete=True)
        await self._report_surely(self._final)
        return self._final

    async def report(self) -> bool:
        """Write the watermark again, for a journal that lost it; False where it does not answer."""
        return await self._report(self._final or self._standing())

    async def _publish_all(self, instances: Iterable[Instance] | AsyncIterable[Instance]) -> None:
        async with asyncio.TaskGroup() as group:
            async for instance in _each(instances):
                self._early.discard(self._last)
                self._last = instance.id
                if instance.id in self._early:
                    self._confirmed += 1
                    continue
                await self._room()
                if self._window is not None:
                    self._out.add(instance.id)
                if instance.out:
                    self._confirmed += 1
                    continue
                self._unconfirmed[instance.id] = None
                group.create_task(self._publish_one(instance))

    async def _room(self) -> None:
        while self._is_full():
            self._changed.clear()
            await self._changed.wait()

    def _is_full(self) -> bool:
        if len(self._unconfirmed) >= MAX_UNCONFIRMED:
            return True
        return self._window is not None and len(self._out) >= self._window

    async def publish_again(self, instances: Iterable[Instance]) -> int:
        """Publish those of these instances again that are out and confirmed; how many they were.

        For messages that were lost (producers/healing.py); needs a window. A copy too many does
        no harm.
        """
        again = 0
        for instance in instances:
            if instance.id in self._out and instance.id not in self._unconfirmed:
                await publish_patiently(self._broker, self._message(instance))
                again += 1
        return again

    async def _publish_one(self, instance: Instance) -> None:
        await publish_patiently(self._broker, self._message(instance))
        crash_at("publisher.after_publish")
        del self._unconfirmed[instance.id]
        self._confirmed += 1
        self._changed.set()

    def _message(self, instance: Instance) -> Outgoing:
        return task_message(
            msgspec.structs.replace(
                self._template,
                task_index=instance.line.index,
                repeat=instance.repeat,
                row=instance.line.raw,
                enqueued_at=time.time(),
            )
        )

    def _standing(self) -> Published:
        """What holds right now; of the last task not every repeat may have been taken up."""
        oldest = next(iter(self._unconfirmed), self._last)
        return Published(self._confirmed, max(oldest[0], 0), complete=False)

    def _tell(self, published: Published) -> None:
        if self._on_published is not None:
            self._on_published(published)

    async def _report_regularly(self) -> None:
        told: Published | None = None
        while True:
            await asyncio.sleep(REPORT_EVERY_S)
            now = self._standing()
            if now != told and await self._report(now):
                told = now

    async def _report_surely(self, published: Published) -> None:
        while True:
            if await self._report(published):
                return
            await asyncio.sleep(random.uniform(0.5, 1.5))

    async def _report(self, published: Published) -> bool:
        """Write the watermark; False where the journal does not answer, which can wait."""
        self._tell(published)
        run, generation = self._template.run, self._template.generation
        try:
            await self._runs.published(run, generation, published.count, published.complete)
        except JournalUnavailable as e:
            log.warning("watermark not raised", extra={"run": run, "error": str(e)})
            return False
        return True


def queues_for(environment: str, run: str, audiences: Sequence[str]) -> list[QueueSpec]:
    """All that the tasks of a run will need on their way: theirs, and every audience's.

    `sink` are the standing sinks; any other audience has a queue of its own for this run.
    """
    lanes = [task_queue(lane, environment) for lane in (*LANES, "suspect")]
    own = [run_results_queue(who, run) for who in audiences if who != "sink"]
    sinks = [sink_queue(shard) for shard in range(SINK_SHARDS)] if "sink" in audiences else []
    ladders = [*ladder_queues("task"), *ladder_queues("verify")]
    return [*lanes, *ladders, verify_queue(environment), *own, *sinks, dead_queue(), kept_queue()]


def task_message(task: Task) -> Outgoing:
    """The task on its way to its environment's agents, just enqueued. Raises TooLarge."""
    return Outgoing(
        exchange=TASK.name,
        key=task_key(task.lane, task.environment),
        body=codec.encode(task),
        kind=codec.kind_of(Task),
        expires_s=task.limits.waits.task_s,
    )


async def _each(instances: Iterable[Instance] | AsyncIterable[Instance]) -> AsyncIterator[Instance]:
    if isinstance(instances, AsyncIterable):
        async for instance in instances:
            yield instance
    else:
        for instance in instances:
            yield instance


__all__ = ["Id", "Instance", "Published", "Publisher", "queues_for", "remaining", "task_message"]
