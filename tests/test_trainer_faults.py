"""The trainer's client over crashes and outages: each rollout until it is acked, then never."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.base import Delivery, OnDelivery, Outgoing
from broker.errors import JournalUnavailable
from broker.journal.base import Committed
from broker.journal.memory import MemoryRuns
from broker.journal.runs import Totals
from broker.memory import MemoryBroker
from broker.memory_node import MemoryNode
from broker.messages import Task
from broker.topology import DEAD, RESULT, dead_queue, result_key
from producers.trainer import TrainerClient
from tests.support.trainer_world import DEADLINE_S, RUN, World, finished, first, first_group


async def test_what_was_not_acked_comes_again_after_a_crash() -> None:
    world = World()
    async with world.workers():
        async with world.trainer() as client:
            await client.submit("a")
            await client.submit("b")
            for task in await world.have(2):
                await world.finish(task)
            rollouts = client.rollouts()
            await client.ack(await anext(rollouts))
            await anext(rollouts)
        async with world.trainer() as client:
            assert (await first(client)).rollout_id == "run/1/0"
            assert client.out == 1
            assert (await client.submit("c")).task_index == 2


async def test_acked_rollouts_are_marked_and_forgotten_by_the_journal() -> None:
    world = World()
    async with world.workers(), world.trainer(repeats=2) as client:
        await client.submit("?")
        for task in list(await world.have(2)):
            await world.finish(task)
        await client.ack([await first_group(client)])
        assert client.out == 0
        assert isinstance(await world.journal.take(task.journal_key, "inbox"), Committed)
    progress = await world.runs.progress("run")
    assert progress is not None
    assert (progress.published, progress.committed) == (2, 2)
    assert progress.totals == Totals(
        completed=2,
        reward_sum=2.0,
        rewarded=2,
        model_calls=2,
        prompt_tokens=4,
        generated_tokens=2,
    )
    assert await world.left() == 0


async def test_a_rollout_comes_once_however_often_it_is_delivered() -> None:
    world = World()
    async with world.workers():
        async with world.trainer() as client:
            await client.submit("a")
            await client.submit("b")
            one, two = await world.have(2)
            for task in (one, one, two, one):
                await world.finish(task)
            rollouts = client.rollouts()
            assert [(await anext(rollouts)).task_index for _ in range(2)] == [0, 1]
        assert await world.left() == 2  # one copy of each is still there
        async with world.trainer() as client:
            await client.ack([await first(client), await first(client)])
            await client.submit("c")
            for task in (one, two, (await world.have(3))[2]):
                await world.finish(task)
            await client.ack(await first(client))
        assert await world.left() == 0


async def test_a_lost_connection_brings_what_is_held_again_but_only_to_the_client() -> None:
    world = World()
    broker = world.broker.connect()
    async with (
        asyncio.timeout(DEADLINE_S),
        world.workers(),
        TrainerClient.connect(broker, world.journal, world.runs, **RUN) as client,
    ):
        await client.submit("a")
        await client.submit("b")
        one, two = await world.have(2)
        await world.finish(one)
        rollout = await first(client)
        broker.break_connection()
        await world.finish(two)
        assert (await first(client)).task_index == 1
        await client.ack(rollout)
    await broker.close()
    assert await world.left() == 1


class Watched(MemoryBroker):
    """A connection that tells of every delivery."""

    def __init__(self, node: MemoryNode) -> None:
        super().__init__(node)
        self.deliveries: asyncio.Queue[Delivery] = asyncio.Queue()

    @asynccontextmanager
    async def consume(
        self, queue: str, prefetch: int | None, on_delivery: OnDelivery
    ) -> AsyncGenerator[None]:
        def tell(delivery: Delivery) -> None:
            on_delivery(delivery)
            self.deliveries.put_nowait(delivery)

        async with super().consume(queue, prefetch, tell):
            yield


async def test_what_is_held_for_long_is_renewed_and_stays_one() -> None:
    world = World()
    node = MemoryNode()
    world.broker = MemoryBroker(node)
    broker = Watched(node)
    async with (
        asyncio.timeout(DEADLINE_S),
        world.workers(),
        TrainerClient.connect(
            broker, world.journal, world.runs, **RUN, renew_after_s=0.2
        ) as client,
    ):
        await client.submit("?")
        await world.finish((await world.have(1))[0])
        rollout = await first(client)
        old, new = await broker.deliveries.get(), await broker.deliveries.get()
        assert not old.live
        assert new.live
        await client.ack(rollout)
        assert not new.live
        assert client.out == 0
    await broker.close()


async def test_an_unreadable_result_is_dead_lettered_with_its_reason() -> None:
    world = World()
    dead: asyncio.Queue[Delivery] = asyncio.Queue()
    async with world.trainer():
        await world.broker.declare([dead_queue()])
        async with world.broker.consume(dead_queue().name, 1, dead.put_nowait):
            await world.broker.publish(
                Outgoing(RESULT.name, result_key("trainer", "run", 0), b"junk", kind="result.v1")
            )
            letter = await dead.get()
            letter.ack()
    assert letter.exchange == DEAD.name
    assert "not a Result" in str(letter.headers["warren-reason"])


async def test_siblings_that_a_dead_trainer_never_published_are_published() -> None:
    world = World()
    async with world.workers():
        async with world.trainer(repeats=2) as client:
            await client.submit("?")
            lost = list(await world.have(2))[1]
        world.tasks.remove(lost)  # as if the trainer had died before it
        await world.finish(world.tasks[0])
        async with world.trainer(repeats=2) as client:
            again = (await world.have(2))[1]
            assert (again.task_index, again.repeat, again.row) == (0, 1, lost.row)
            await world.finish(again)
            assert len(await first_group(client)) == 2


class Down(MemoryRuns):
    """A journal that can be down."""

    down = False

    async def published(self, run: str, generation: str, count: int, complete: bool) -> None:
        if self.down:
            raise JournalUnavailable("down")
        await super().published(run, generation, count, complete)

    async def mark(self, run: str, generation: str, shard: str, rows: Any, totals: Totals) -> None:
        if self.down:
            raise JournalUnavailable("down")
        await super().mark(run, generation, shard, rows, totals)


async def test_while_the_journal_is_down_nothing_is_published_and_nothing_is_acked() -> None:
    world = World()
    runs = world.runs = Down()
    async with world.workers(), world.trainer(window=1) as client:
        runs.down = True
        with pytest.raises(JournalUnavailable):
            await client.submit("?")
        assert client.out == 0
        runs.down = False
        await client.submit("?")
        (task,) = await world.have(1)
        await world.finish(task)
        rollout = await first(client)
        runs.down = True
        with pytest.raises(JournalUnavailable):
            await client.ack(rollout)
        assert client.out == 1
        runs.down = False
        await client.ack(rollout)
        assert client.out == 0


async def test_with_files_the_sinks_say_what_is_durable() -> None:
    world = World()
    async with world.workers(), world.trainer(files=True) as client:
        await client.submit("?")
        (task,) = await world.have(1)
        assert task.audiences == ("trainer", "sink")
        await world.broker.publish(finished(task))
        await client.ack(await first(client))
    progress = await world.runs.progress("run")
    assert progress is not None
    assert progress.committed == 0
    assert await world.left() == 0


Step = st.sampled_from(["submit", "finish", "duplicate", "ack", "crash"])


@settings(max_examples=60, deadline=None)
@given(st.lists(Step, max_size=40))
async def test_whatever_happens_each_rollout_is_acked_once_and_none_is_lost(
    steps: list[str],
) -> None:
    world = World()
    acked: list[str] = []
    submitted = 0
    done: list[Task] = []

    async def ack_one(client: TrainerClient) -> None:
        rollout = await first(client)
        await client.ack(rollout)
        acked.append(rollout.rollout_id)

    async with world.workers():
        remaining_steps = iter([*steps, "crash"])
        ended = False
        while not ended:
            async with world.trainer(window=100) as client:
                for step in remaining_steps:
                    open_ = len(done) - len(acked)
                    if step == "submit":
                        await client.submit(str(submitted))
                        submitted += 1
                    elif step == "finish" and len(done) < submitted:
                        done.append((await world.have(len(done) + 1))[len(done)])
                        await world.finish(done[-1])
                    elif step == "duplicate" and done:
                        await world.finish(done[0])
                    elif step == "ack" and open_:
                        await ack_one(client)
                    elif step == "crash":
                        break
                else:
                    ended = True
        async with world.trainer(window=100) as client:
            for task in await world.have(submitted):  # acked ones too, which must not come again
                await world.finish(task)
            while len(acked) < submitted:
                await ack_one(client)
    assert sorted(acked) == sorted(f"run/{index}/0" for index in range(submitted))
