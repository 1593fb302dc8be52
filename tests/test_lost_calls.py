"""Calls that a restarted broker has forgotten: their owner publishes them again, and no others."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import pytest

from broker import codec
from broker.journal.base import Begun, Busy, CallRef, Go, Gone, Lost, Overview
from broker.journal.memory import MemoryJournal
from broker.memory import MemoryBroker
from broker.memory_node import MemoryNode
from broker.messages import ToolCall
from broker.names import new_id
from broker.rabbitmq import RabbitBroker
from broker.topology import tool_queue
from tests.support.calls import asked
from tests.support.journals import taken
from tests.support.services import Server
from tests.support.virtual_time import VirtualTimeLoop
from workers.inbox import SWEEP_S, Inbox
from workers.owner import VANISHED_S, Owner

KEY = "r.g/0/0"
QUEUE = tool_queue("env")
#: After a reconnect a lost call is published again within this time, and so is one whose executor
#: is found dead.
SOON_S = 8.0
LONG_S = 300.0


class Looks(MemoryJournal):
    """Counts the looks; some find the store as it was while executors could not reach it."""

    def __init__(self) -> None:
        super().__init__()
        self.looks = 0
        self.forgets_lease_once = ""

    async def look(self, rollout: str, epoch: str, paths: Sequence[str]) -> Overview | Gone | Lost:
        self.looks += 1
        lease, self.forgets_lease_once = self.forgets_lease_once, ""
        if not lease:
            return await super().look(rollout, epoch, paths)
        await self.end_lease(lease)
        seen = await super().look(rollout, epoch, paths)
        await self.renew_lease(lease)
        return seen


class World:
    """An owner with one call out, and nobody who takes it from its queue but the test."""

    def __init__(self) -> None:
        self.node = MemoryNode()
        self.journal = Looks()
        self.broker = MemoryBroker(self.node)
        self.owner: Owner
        self.call: asyncio.Task[bytes]

    @asynccontextmanager
    async def open(self, wait_s: float | None = None) -> AsyncGenerator[None, None]:
        """The call is published."""
        self.node.declare(QUEUE)
        inbox = Inbox(self.broker, self.journal, "owner")
        async with inbox.open():
            run = await taken(self.journal, KEY, "owner")
            with inbox.own(KEY, run) as self.owner:
                self.call = asyncio.create_task(self.owner.call(asked(wait_s=wait_s)))
                await asyncio.sleep(0)
                assert self.queued == 1
                yield
                self.call.cancel()
                await asyncio.wait([self.call])

    @property
    def queued(self) -> int:
        """Copies of the call."""
        return len(self.node.queues[QUEUE.name].ready)

    async def begun(self, executor: str = "executor") -> CallRef:
        """Somebody takes a copy, which the broker has forgotten before it is acknowledged."""
        call = self.take()
        assert isinstance(await self.begin(call, executor), Go)
        return CallRef.of(call, executor)

    def take(self) -> ToolCall:
        """Somebody takes a copy."""
        stored = self.node.queues[QUEUE.name].ready.popleft()
        return codec.decode(ToolCall, stored.body, stored.kind)

    async def begin(self, call: ToolCall, executor: str = "") -> Begun:
        """Whoever took it begins, an executor of its own each unless it is said which."""
        executor = executor or f"executor-{call.carrier}"
        await self.journal.renew_lease(executor)
        return await self.journal.begin(CallRef.of(call, executor))

    def restart_broker(self) -> None:
        """It comes back without calls."""
        self.node.queues[QUEUE.name].ready.clear()
        self.broker.break_connection()


def played(scenario: Callable[[World], Awaitable[None]]) -> None:
    """In virtual time."""

    async def play() -> None:
        world = World()
        async with world.open():
            await scenario(world)

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(play())


def test_a_call_that_a_restarted_broker_forgot_is_published_again_soon_and_once() -> None:
    async def scenario(world: World) -> None:
        for _ in range(2):
            world.restart_broker()
            await asyncio.sleep(SOON_S)
            assert world.queued == 1
            await asyncio.sleep(LONG_S)
            assert world.queued == 1

    played(scenario)


def test_a_call_that_waits_in_a_backlog_is_published_once_per_reconnect_and_never_without() -> None:
    async def scenario(world: World) -> None:
        await asyncio.sleep(LONG_S)
        assert world.queued == 1
        world.broker.break_connection()  # a cable: the broker has the call, which nobody can know
        await asyncio.sleep(LONG_S)
        assert world.queued == 2

    played(scenario)


def test_a_call_that_was_published_after_the_reconnect_is_not_looked_for() -> None:
    async def scenario(world: World) -> None:
        world.restart_broker()
        await asyncio.sleep(SOON_S)
        looks = world.journal.looks
        await asyncio.sleep(LONG_S)
        assert world.journal.looks - looks <= LONG_S / 20 + 1  # as ever: the regular sweeps

    played(scenario)


def test_a_call_that_a_living_executor_has_is_left_to_it_until_that_one_is_dead() -> None:
    async def scenario(world: World) -> None:
        ref = await world.begun()
        world.restart_broker()
        await asyncio.sleep(LONG_S)
        assert world.queued == 0
        await world.journal.end_lease(ref.executor)
        await asyncio.sleep(SOON_S)
        assert world.queued == 1
        await asyncio.sleep(LONG_S)
        assert world.queued == 1

    played(scenario)


def test_a_call_whose_executor_died_with_the_broker_is_published_again_when_its_lease_is_out() -> (
    None
):
    async def scenario(world: World) -> None:
        ref = await world.begun()
        world.restart_broker()
        await asyncio.sleep(5.0)  # the lease outlasts the first look
        assert world.queued == 0
        await world.journal.end_lease(ref.executor)
        await asyncio.sleep(SOON_S)
        assert world.queued == 1
        await world.begun("another")

    played(scenario)


def test_a_call_whose_queue_was_purged_is_published_again_and_once() -> None:
    async def scenario(world: World) -> None:
        for _ in range(2):
            await asyncio.sleep(VANISHED_S)
            world.node.queues[QUEUE.name].ready.clear()
            await asyncio.sleep(SWEEP_S + SOON_S)
            assert world.queued == 1
            await asyncio.sleep(LONG_S)
            assert world.queued == 1

    played(scenario)


def test_a_call_that_was_taken_is_left_to_whoever_has_it_though_its_queue_is_empty() -> None:
    async def scenario(world: World) -> None:
        ref = await world.begun()
        await asyncio.sleep(LONG_S)
        assert world.queued == 0
        await world.journal.put_off(ref)
        await world.journal.end_lease(ref.executor)
        await asyncio.sleep(LONG_S)
        assert world.queued == 0

    played(scenario)


def test_a_call_that_is_taken_by_who_never_begins_goes_to_others_now_and_then() -> None:
    """Processes that hang have it. When they wake up, all copies but one are dropped."""

    async def scenario(world: World) -> None:
        held = [world.take()]
        for _ in range(round(LONG_S)):
            await asyncio.sleep(1.0)
            held += [world.take() for _ in range(world.queued)]
        assert 2 <= len(held) <= 2 + LONG_S / VANISHED_S
        assert await world.begin(held[1]) == Go(1, b"", 0)
        for other in (held[0], *held[2:]):
            assert await world.begin(other) == Busy()
        await asyncio.sleep(LONG_S)
        assert world.queued == 0

    played(scenario)


async def test_a_call_whose_queue_was_deleted_is_published_to_a_new_one(rabbitmq: Server) -> None:
    broker, operator = [await RabbitBroker.connect(rabbitmq.url) for _ in range(2)]
    journal = MemoryJournal()
    worker = Inbox(broker, journal, f"owner-{new_id()}", sweep_s=0.2)
    queue = tool_queue(f"env-{new_id()}")
    try:
        await broker.declare([queue])
        async with worker.open(), asyncio.timeout(30):
            run = await taken(journal, KEY, worker.worker_id)
            with worker.own(KEY, run) as owner:
                call = asyncio.create_task(owner.call(asked(key=queue.bindings[0].key)))
                await _until_waits(broker, queue.name)
                await operator.delete(queue.name)
                await _until_waits(broker, queue.name)
                call.cancel()
                await asyncio.wait([call])
        await broker.delete(queue.name)
    finally:
        await broker.close()
        await operator.close()


async def _until_waits(broker: RabbitBroker, queue: str) -> None:
    while (depth := await broker.depth(queue)) is None or not depth.ready:  # noqa: ASYNC110
        await asyncio.sleep(0.02)


def test_a_call_that_waits_on_a_ladder_is_left_there() -> None:
    async def scenario(world: World) -> None:
        ref = await world.begun()
        await world.journal.put_off(ref)
        await world.journal.end_lease(ref.executor)
        world.restart_broker()
        await asyncio.sleep(LONG_S)
        assert world.queued == 0

    played(scenario)


def test_one_look_that_finds_no_executor_is_not_believed() -> None:
    """The store was away, and its executors have not renewed their leases yet."""

    async def scenario(world: World) -> None:
        ref = await world.begun()
        world.journal.forgets_lease_once = ref.executor
        world.restart_broker()
        await asyncio.sleep(LONG_S)
        assert not world.journal.forgets_lease_once
        assert world.queued == 0

    played(scenario)


def test_a_call_is_not_published_again_while_its_journal_is_being_restored() -> None:
    """Whoever executes it has lost its claim with the journal."""

    async def scenario(world: World) -> None:
        await world.begun()
        world.journal.table.restore(type(world.journal.table)())
        world.restart_broker()
        await asyncio.sleep(25.0)
        assert world.queued == 0
        await asyncio.sleep(15.0)
        assert world.queued == 1

    played(scenario)


@pytest.mark.parametrize("begun", [True, False])
async def test_a_call_was_begun_in_time_though_whoever_began_is_gone(begun: bool) -> None:
    world = World()
    async with world.open(wait_s=0.05):
        if begun:
            await world.journal.end_lease((await world.begun()).executor)
        await asyncio.sleep(0.1)
        await world.owner.sweep()
        await asyncio.sleep(0)
        done, _ = await asyncio.wait([world.call], timeout=0.2)
        assert bool(done) is not begun
        if done:
            assert world.call.result() == b"nobody began"
