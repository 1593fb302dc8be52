"""Publishing: in order, within the window, confirmed before it counts, and resumable."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import AsyncExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker import codec
from broker.base import Delivery, Outgoing
from broker.errors import BrokerLost, JournalUnavailable, QueueFull, Unroutable
from broker.journal.memory import MemoryRuns
from broker.journal.runs import RunInfo
from broker.memory import MemoryBroker
from broker.messages import Task
from broker.topology import run_results_queue, task_queue
from producers import bitmap
from producers.datasets import TaskLine
from producers.publisher import Instance, Published, Publisher, remaining

RUN = RunInfo(
    run="run", generation="g", environment="calculator", model="m", repeats=2, created_at=1.0
)
TEMPLATE = Task(
    run="run",
    generation="g",
    task_index=0,
    repeat=0,
    environment="calculator",
    model="m",
    row=b"",
    audiences=("collect",),
)
QUEUE = task_queue("normal", "calculator")
QUEUES = [QUEUE, run_results_queue("collect", "run")]
DEADLINE_S = 20.0


def lines(count: int) -> list[TaskLine]:
    return [TaskLine(i, json.dumps({"prompt": str(i)}).encode()) for i in range(count)]


class Agents:
    """Takes tasks from the queue, as workers would; the test commits their rows."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker
        self._arrived = asyncio.Event()
        self.tasks: list[Task] = []

    def take(self, delivery: Delivery) -> None:
        self.tasks.append(codec.decode(Task, delivery.body, delivery.kind))
        delivery.ack()
        self._arrived.set()

    @property
    def ids(self) -> list[tuple[int, int]]:
        return [(task.task_index, task.repeat) for task in self.tasks]

    async def have(self, count: int) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while len(self.tasks) < count:
                self._arrived.clear()
                await self._arrived.wait()


async def working(stack: AsyncExitStack, broker: MemoryBroker) -> Agents:
    agents = Agents(broker)
    await broker.declare([QUEUE])
    await stack.enter_async_context(broker.consume(QUEUE.name, 1000, agents.take))
    return agents


def publisher(broker: MemoryBroker, runs: MemoryRuns, **options: object) -> Publisher:
    given = {"queues": QUEUES, "window": 100, **options}
    return Publisher(broker, runs, TEMPLATE, **given)  # type: ignore[arg-type]


async def test_repeats_come_one_after_the_other_byte_for_byte() -> None:
    broker = MemoryBroker()
    async with AsyncExitStack() as stack:
        agents = await working(stack, broker)
        done = await publisher(broker, MemoryRuns()).publish(remaining(lines(3), 2))
        await agents.have(6)
    assert agents.ids == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
    assert [task.row for task in agents.tasks[::2]] == [line.raw for line in lines(3)]
    assert agents.tasks[0].rollout_id == "run/0/0"
    assert done == Published(count=6, end=3, complete=True)


async def test_every_queue_exists_before_the_first_task() -> None:
    broker = MemoryBroker()
    await publisher(broker, MemoryRuns()).publish(remaining(lines(1), 1))
    assert await broker.depth(QUEUES[1].name) is not None


async def test_at_most_a_window_is_out_and_commits_make_room() -> None:
    broker = MemoryBroker()
    async with AsyncExitStack() as stack, asyncio.timeout(DEADLINE_S):
        agents = await working(stack, broker)
        limited = publisher(broker, MemoryRuns(), window=3)
        publishing = asyncio.create_task(limited.publish(remaining(lines(10), 2)))
        for committed in range(20):
            await agents.have(min(20, committed + 3))
            await asyncio.sleep(0)
            assert len(agents.tasks) == min(20, committed + 3)
            limited.committed(*agents.ids[committed])
            limited.committed(*agents.ids[committed])  # a sink may say it twice
        assert (await publishing).count == 20
        assert limited.out == 0


async def test_commits_that_come_before_their_turn_need_no_publish() -> None:
    broker = MemoryBroker()
    async with AsyncExitStack() as stack, asyncio.timeout(DEADLINE_S):
        agents = await working(stack, broker)
        early = publisher(broker, MemoryRuns(), window=1)
        early.committed(1, 0)
        publishing = asyncio.create_task(early.publish(remaining(lines(3), 1)))
        await agents.have(1)
        early.committed(0, 0)
        await agents.have(2)
        early.committed(2, 0)
        assert (await publishing).count == 3
    assert agents.ids == [(0, 0), (2, 0)]


async def test_what_is_below_the_watermark_is_awaited_not_published() -> None:
    broker = MemoryBroker()
    async with AsyncExitStack() as stack, asyncio.timeout(DEADLINE_S):
        agents = await working(stack, broker)
        resumed = publisher(broker, MemoryRuns(), window=2, published_before=1)
        plan = remaining(lines(4), 1, committed=[b"\x80"], watermark=[3])
        publishing = asyncio.create_task(resumed.publish(plan))
        resumed.committed(1, 0)
        await agents.have(1)
        resumed.committed(2, 0)
        assert (await publishing).count == 4
    assert agents.ids == [(3, 0)]


class Refusing(MemoryBroker):
    """Refuses each publish once, or always."""

    def __init__(self, error: Exception, *, always: bool = False) -> None:
        super().__init__()
        self._error = error
        self._always = always
        self._refused: set[bytes] = set()

    async def publish(self, message: Outgoing) -> None:
        if self._always or message.body not in self._refused:
            self._refused.add(message.body)
            raise self._error
        await super().publish(message)


async def test_a_full_queue_is_waited_for() -> None:
    broker = Refusing(QueueFull("full"))
    async with asyncio.timeout(DEADLINE_S):
        await publisher(broker, MemoryRuns()).publish(remaining(lines(5), 1))
    depth = await broker.depth(QUEUE.name)
    assert depth is not None
    assert depth.ready == 5


@pytest.mark.parametrize("error", [Unroutable("x", "k"), BrokerLost("gone")])
async def test_a_broker_that_fails_stops_it_and_nothing_is_claimed(error: Exception) -> None:
    told: list[Published] = []
    broker = Refusing(error, always=True)
    failing = publisher(broker, MemoryRuns(), on_published=told.append)
    with pytest.raises(ExceptionGroup):
        await failing.publish(remaining(lines(5), 1))
    assert told[-1] == Published(count=0, end=0, complete=False)


async def test_the_watermark_reaches_the_journal_with_the_end() -> None:
    runs = MemoryRuns()
    await runs.register(RUN)
    await publisher(MemoryBroker(), runs).publish(remaining(lines(4), 2))
    progress = await runs.progress("run")
    assert progress is not None
    assert (progress.published, progress.complete) == (8, True)


class Forgetful(MemoryRuns):
    """A journal that is down for its first calls."""

    def __init__(self, failures: int) -> None:
        super().__init__()
        self.failures = failures

    async def published(self, run: str, generation: str, count: int, complete: bool) -> None:
        if self.failures:
            self.failures -= 1
            raise JournalUnavailable("down")
        await super().published(run, generation, count, complete)


async def test_the_end_is_written_though_the_journal_was_down() -> None:
    runs = Forgetful(1)
    await runs.register(RUN)
    async with asyncio.timeout(DEADLINE_S):
        await publisher(MemoryBroker(), runs).publish(remaining(lines(1), 1))
    progress = await runs.progress("run")
    assert progress is not None
    assert progress.complete


class Stuck(MemoryBroker):
    """Confirms everything but one task."""

    def __init__(self, task_index: int) -> None:
        super().__init__()
        self._task_index = task_index
        self.reached = asyncio.Event()

    async def publish(self, message: Outgoing) -> None:
        index = codec.decode(Task, message.body).task_index
        if index == self._task_index:
            await asyncio.Event().wait()
        await super().publish(message)
        if index == self._task_index + 5:
            self.reached.set()


async def test_cancelled_it_claims_only_what_is_confirmed() -> None:
    told: list[Published] = []
    broker = Stuck(3)
    stuck = publisher(broker, MemoryRuns(), on_published=told.append)
    publishing = asyncio.create_task(stuck.publish(remaining(lines(20), 1)))
    async with asyncio.timeout(DEADLINE_S):
        await broker.reached.wait()
    publishing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await publishing
    assert told[-1].end == 3
    assert not told[-1].complete


async def test_without_a_window_only_the_queues_bound_it() -> None:
    broker = MemoryBroker()
    free = publisher(broker, MemoryRuns(), window=None)
    async with asyncio.timeout(DEADLINE_S):
        assert (await free.publish(remaining(lines(1000), 1))).count == 1000
    assert free.out == 0


async def test_unconfirmed_publishes_are_bounded() -> None:
    taken = 0

    def counted() -> Iterator[Instance]:
        nonlocal taken
        for instance in remaining(lines(1000), 1):
            taken += 1
            yield instance

    class Silent(MemoryBroker):
        async def publish(self, message: Outgoing) -> None:
            self.waiting.set()
            await asyncio.Event().wait()

        waiting = asyncio.Event()

    broker = Silent()
    publishing = asyncio.create_task(
        publisher(broker, MemoryRuns(), window=None).publish(counted())
    )
    async with asyncio.timeout(DEADLINE_S):
        await broker.waiting.wait()
    assert taken <= 257
    publishing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await publishing


def test_a_window_must_have_room() -> None:
    with pytest.raises(ValueError, match="window is 0"):
        publisher(MemoryBroker(), MemoryRuns(), window=0)


Bits = st.lists(st.sets(st.integers(0, 20)), max_size=4)


@given(st.integers(0, 20), st.integers(1, 4), Bits, st.lists(st.integers(0, 22), max_size=4))
def test_what_remains_is_what_has_no_row(
    count: int, repeats: int, committed: list[set[int]], watermark: list[int]
) -> None:
    bits = []
    for indices in committed:
        bits.append(bytearray())
        for index in indices:
            bitmap.add(bits[-1], index)
    left = list(remaining(lines(count), repeats, [bytes(b) for b in bits], watermark))
    done = {(index, repeat) for repeat, indices in enumerate(committed) for index in indices}
    every = {(index, repeat) for index in range(count) for repeat in range(repeats)}
    assert [instance.id for instance in left] == sorted(every - done)
    for instance in left:
        below = (
            instance.repeat < len(watermark) and instance.line.index < watermark[instance.repeat]
        )
        assert instance.out == below
    assert [bitmap.count(b) for b in bits] == [len(indices) for indices in committed]
    assert [set(bitmap.indices(bytes(b))) for b in bits] == [set(some) for some in committed]


@given(
    window=st.integers(1, 5),
    count=st.integers(0, 12),
    order=st.randoms(use_true_random=False),
    early=st.sets(st.integers(0, 11), max_size=3),
)
async def test_however_commits_come_all_is_published_once_within_the_window(
    window: int, count: int, order: object, early: set[int]
) -> None:
    broker = MemoryBroker()
    async with AsyncExitStack() as stack, asyncio.timeout(DEADLINE_S):
        agents = await working(stack, broker)
        limited = publisher(broker, MemoryRuns(), window=window)
        for index in early:
            limited.committed(index, 0)
        publishing = asyncio.create_task(limited.publish(remaining(lines(count), 1)))
        wanted = [(index, 0) for index in range(count) if index not in early]
        open_: list[tuple[int, int]] = []
        seen = 0
        while seen < len(wanted) or open_:
            if not open_:
                await agents.have(seen + 1)
            open_ += agents.ids[seen:]
            seen = len(agents.tasks)
            assert len(open_) <= window
            order.shuffle(open_)  # type: ignore[attr-defined]
            limited.committed(*open_.pop())
        await publishing
    assert agents.ids == wanted


async def test_a_queue_that_is_taken_away_meanwhile_is_declared_again() -> None:
    broker = MemoryBroker()
    async with AsyncExitStack() as stack, asyncio.timeout(DEADLINE_S):
        agents = await working(stack, broker)
        limited = publisher(broker, MemoryRuns(), window=2)
        publishing = asyncio.create_task(limited.publish(remaining(lines(6), 1)))
        await agents.have(2)
        await broker.connect().delete(QUEUE.name)
        for done in range(6):
            await agents.have(done + 1)
            limited.committed(*agents.ids[done])
        assert (await publishing).count == 6


async def test_tasks_that_nobody_is_bound_for_are_refused() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        await publisher(MemoryBroker(), MemoryRuns(), queues=[]).publish(remaining(lines(1), 1))
    assert caught.group_contains(Unroutable)


@pytest.mark.parametrize(
    ("bits", "others", "left"),
    [
        (b"", b"\xff", []),
        (b"\xff", b"", list(range(8))),
        (b"\xc0\x01", b"\x40", [0, 15]),
        (b"\x80", b"\x80\xff", []),
    ],
)
def test_what_is_in_one_set_and_not_in_the_other(
    bits: bytes, others: bytes, left: list[int]
) -> None:
    assert list(bitmap.indices(bitmap.without(bits, others))) == left
