"""Time limits on one timer: blocks are cut off when `asyncio.timeout` would do it, at its price."""

import asyncio
import contextvars
import itertools
from collections.abc import Callable, Coroutine
from typing import Any, TypeVarTuple

import pytest
import uvloop

from broker.deadlines import Deadlines
from tests.support.virtual_time import VirtualTimeLoop

Args = TypeVarTuple("Args")


class CountingLoop(VirtualTimeLoop):
    """Counts its timers."""

    def __init__(self) -> None:
        super().__init__()
        self.timers = 0

    def call_at(
        self,
        when: float,
        callback: Callable[[*Args], object],
        *args: *Args,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        self.timers += 1
        return super().call_at(when, callback, *args, context=context)


def run(scene: Callable[[], Coroutine[Any, Any, None]]) -> None:
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(scene())


async def cut_after(deadlines: Deadlines, seconds: float) -> float:
    """How long a block without an end was let run."""
    began = asyncio.get_running_loop().time()
    with pytest.raises(TimeoutError), deadlines.within(seconds):
        await asyncio.Event().wait()
    return asyncio.get_running_loop().time() - began


def test_each_block_is_cut_off_at_its_own_deadline_in_whatever_order_they_began() -> None:
    async def scene() -> None:
        for order in itertools.permutations((0.0, 1.0, 2.0, 5.0)):
            deadlines = Deadlines()
            async with asyncio.TaskGroup() as group:
                cuts = [(s, group.create_task(cut_after(deadlines, s))) for s in order]
            assert {s: cut.result() for s, cut in cuts} == {
                s: pytest.approx(s, abs=0.1) for s in order
            }

    run(scene)


def test_a_deadline_holds_when_earlier_ones_have_been_left_in_time() -> None:
    async def scene() -> None:
        deadlines = Deadlines()
        with deadlines.within(1.0):
            await asyncio.sleep(0.5)
        assert await cut_after(deadlines, 3.0) == pytest.approx(3.0, abs=0.1)
        await asyncio.sleep(10)
        assert await cut_after(deadlines, 2.0) == pytest.approx(2.0, abs=0.1)

    run(scene)


def test_a_block_that_ends_in_time_costs_no_timer() -> None:
    async def scene() -> None:
        loop, deadlines = asyncio.get_running_loop(), Deadlines()
        assert isinstance(loop, CountingLoop)
        for _ in range(100):
            with deadlines.within(5.0):
                pass
        assert loop.timers == 1

    with asyncio.Runner(loop_factory=CountingLoop) as runner:
        runner.run(scene())


def test_of_two_nested_limits_the_one_that_is_reached_raises() -> None:
    async def scene() -> None:
        for outer_s, inner_s, cut in ((1.0, 5.0, "outer"), (5.0, 1.0, "inner"), (1, 1, "outer")):
            deadlines, heard = Deadlines(), ""
            try:
                with deadlines.within(outer_s):
                    try:
                        with deadlines.within(inner_s):
                            await asyncio.Event().wait()
                    except TimeoutError:
                        heard = "inner"
            except TimeoutError:
                heard = "outer"
            assert heard == cut
            await asyncio.sleep(10)  # what is over cuts nobody off

    run(scene)


def test_who_cancels_from_outside_is_heard_as_that() -> None:
    async def scene() -> None:
        deadlines = Deadlines()

        async def waits() -> None:
            with deadlines.within(5.0):
                await asyncio.Event().wait()

        task = asyncio.create_task(waits())
        await asyncio.sleep(1)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        await asyncio.sleep(10)

    run(scene)


def test_uvloop_whose_timers_go_off_early_cuts_off_too() -> None:
    async def scene() -> None:
        deadlines = Deadlines()
        async with asyncio.TaskGroup() as group:
            for n in range(50):
                group.create_task(cut_after(deadlines, n / 1700))

    uvloop.run(scene())


def test_a_block_is_cut_before_its_time_but_not_when_it_is_over() -> None:
    async def scene() -> None:
        deadlines = Deadlines()
        deadline = deadlines.within(60.0)
        asyncio.get_running_loop().call_soon(deadlines.cut, deadline)
        with pytest.raises(TimeoutError), deadline:
            await asyncio.Event().wait()
        assert deadline.expired
        with (over := deadlines.within(60.0)):
            pass
        deadlines.cut(over)
        await asyncio.sleep(0)  # nobody is cancelled
        assert not over.expired

    run(scene)
