"""Who holds what: copies handed to their owner, polite ends that count for nothing, replies."""

import asyncio

from broker.journal.base import Run
from broker.journal.memory import MemoryJournal
from broker.memory import MemoryBroker
from broker.messages import Limits, ModelCall
from broker.names import new_worker_id
from broker.topology import task_queue
from tests.support.hand import until
from tests.support.rig import Rig, message, tool_call, trajectory_of
from tests.support.virtual_time import VirtualTimeLoop
from workers.agent.worker import SUSPECT_TAKES
from workers.inbox import Inbox
from workers.spec import EnvironmentSpec, Item, RewardSpec, Rollout
from workers.verifier.worker import MAX_TAKES


async def _one(rollout: Rollout, ctx: object) -> float:
    return 1.0


SPEC = EnvironmentSpec(name="env", rewards=[RewardSpec("one", 1.0, _one)])


class Held:
    """A model or reward that lets nobody go on until it is told to; counts who came."""

    def __init__(self) -> None:
        self.came: asyncio.Queue[None] = asyncio.Queue()
        self.go_on = asyncio.Event()

    async def model(self, items: list[Item], call: ModelCall) -> str:
        await self._hold()
        return "done"

    async def reward(self, rollout: Rollout, ctx: object) -> float:
        await self._hold()
        return 1.0

    async def comes(self) -> None:
        async with asyncio.timeout(10.0):
            await self.came.get()

    async def _hold(self) -> None:
        self.came.put_nowait(None)
        await self.go_on.wait()


class Away(MemoryBroker):
    """Lets nobody say good-bye."""

    async def delete(self, queue: str) -> None:
        await asyncio.Event().wait()


async def test_a_worker_that_stops_does_not_wait_for_a_broker_that_is_away() -> None:
    async with asyncio.timeout(60):  # for ever, if it did
        async with Inbox(Away(), MemoryJournal(), new_worker_id("agent")).open():
            pass


async def test_replies_reach_their_owner_by_themselves_not_by_the_sweep() -> None:
    def model(items: list[Item], call: ModelCall) -> list[Item]:
        if items[-1].get("type") == "function_call_output":
            return [message("done")]
        return [tool_call("double", x=21)]

    rig = Rig(SPEC, model, {"double": lambda arguments: arguments["x"] * 2})
    rig.sweep_s = 3600.0
    async with rig, rig.agent(), rig.verifier():
        await rig.submit(*range(20))
        results = await rig.wait(20)
    assert {trajectory_of(r).status for r in results} == {"completed"}


def test_a_delivery_that_came_to_another_is_handed_to_the_owner_who_had_lost_his() -> None:
    """So that the rollout goes on when that owner leaves too."""

    async def scenario() -> None:
        held = Held()
        async with Rig(SPEC, held.model) as rig, rig.verifier():
            async with rig.agent() as owner:
                await rig.submit(0, limits=Limits(timeout_s=3600.0, call_timeout_s=600.0))
                await held.comes()
                async with rig.agent():
                    await until(lambda: _consumers(rig, 2))
                    # the broker takes the owner's delivery back, and gives it to the other one
                    owner._broker.break_connection()  # type: ignore[attr-defined]
                    for _ in range(100):  # virtual: until all is handed over
                        await asyncio.sleep(0.1)
            held.go_on.set()
            async with rig.agent():  # both are gone: the held copy comes back in 10 s
                (result,) = await rig.wait(1, 60.0)
            assert trajectory_of(result).status == "completed"
            assert set(rig.calls.values()) == {1}

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(scenario())


async def test_agents_that_are_stopped_politely_make_no_rollout_suspect() -> None:
    held = Held()
    rig = Rig(SPEC, held.model)
    async with rig, rig.verifier():
        await rig.submit(0)
        for stop in range(SUSPECT_TAKES + 1):
            async with rig.agent() as agent:
                if not stop:
                    await held.comes()
                await _until(lambda agent=agent: agent.running == 1)
        held.go_on.set()
        async with rig.agent():  # in the suspects' lane nobody serves here
            (result,) = await rig.wait(1)
    assert trajectory_of(result).status == "completed"
    assert set(rig.calls.values()) == {1}


async def test_verifiers_that_are_stopped_politely_do_not_make_a_rollout_unscored() -> None:
    held = Held()
    spec = EnvironmentSpec(name="env", rewards=[RewardSpec("held", 1.0, held.reward)])
    async with Rig(spec, lambda items, call: "done") as rig, rig.agent():
        await rig.submit(0)
        for _ in range(MAX_TAKES + 1):
            async with rig.verifier():
                await held.comes()
        held.go_on.set()
        async with rig.verifier():
            (result,) = await rig.wait(1)
    assert result.verdict.reward == 1.0


async def test_a_rollout_whose_trajectory_is_out_has_ended_in_the_journal() -> None:
    """Then nothing of it is begun again, and nobody calls it failed: only its row is awaited."""
    async with Rig(SPEC, lambda items, call: "done") as rig, rig.verifier():
        async with rig.agent() as agent:
            await rig.submit(0)
            await rig.wait(1)
            await _until(lambda: agent.running == 0)
        taken = await rig.journal.take(rig.task().journal_key, "another")
    assert isinstance(taken, Run)
    assert taken.ended


async def _consumers(rig: Rig, count: int) -> bool:
    depth = await rig.node.depth(task_queue("normal", "env").name)
    return depth is not None and depth.consumers == count


async def _until(true) -> None:  # type: ignore[no-untyped-def]
    async with asyncio.timeout(10.0):
        while not true():  # noqa: ASYNC110 - a worker has no event for it
            await asyncio.sleep(0.01)
