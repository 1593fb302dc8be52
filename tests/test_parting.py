"""What a process that ends still says: each step is cut short, and the next one is taken."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from broker.deadlines import within
from broker.errors import BrokerLost, JournalUnavailable
from broker.parting import PARTING_S, parting
from tests.support.virtual_time import VirtualTimeLoop


def run(scene: Callable[[], Coroutine[Any, Any, None]]) -> None:
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(scene())


async def _never() -> None:
    await asyncio.Event().wait()


def test_every_step_is_taken_by_a_task_that_is_being_cancelled_while_none_gets_an_answer() -> None:
    steps: list[bool] = []

    async def ends() -> None:
        try:
            await _never()
        finally:
            steps.append(await parting(_never()))
            steps.append(await parting(_never()))
            steps.append(await parting(asyncio.sleep(0)))

    async def scene() -> None:
        task = asyncio.create_task(ends())
        await asyncio.sleep(0)
        began = asyncio.get_running_loop().time()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert steps == [False, False, True]
        assert asyncio.get_running_loop().time() - began == pytest.approx(2 * PARTING_S, abs=0.1)

    run(scene)


@pytest.mark.parametrize("error", [JournalUnavailable("away"), BrokerLost("away")])
async def test_a_store_or_broker_that_is_away_is_no_reason_to_stop_parting(
    error: Exception,
) -> None:
    async def step() -> None:
        raise error

    assert not await parting(step())


def test_a_second_cancellation_is_not_taken_for_the_limit() -> None:
    async def ends() -> None:
        try:
            await _never()
        finally:
            with within(10.0):
                await _never()

    async def scene() -> None:
        task = asyncio.create_task(ends())
        for _ in range(2):
            await asyncio.sleep(0.1)
            task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    run(scene)
