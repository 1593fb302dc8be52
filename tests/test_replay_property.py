"""Journal and replay under random schedules: real workers over the memory broker, and a monkey.

Kills, cut connections, duplicate tasks, lost and repeated replies, flushes of the journal, at
random moments; then what is alive brings the run home. Every task has one outcome, the one of an
undisturbed run, and no call is executed again but those that were out at an executor that was
killed.

`WARREN_EXAMPLES=5000 pytest tests/test_replay_property.py` for thousands of schedules.
"""

import asyncio
import os
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any, Final, NamedTuple, cast

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker.base import Outgoing
from broker.errors import BrokerClosed
from broker.journal.base import Journal
from broker.journal.memory import MemoryTable
from broker.memory import MemoryBroker
from broker.messages import Limits, ModelCall
from broker.names import new_worker_id
from broker.serve import Source, serve
from broker.topology import LANES, model_queue, tool_queue
from broker.trajectory import forest, main_transcript
from tests.support.mortal import Mortal
from tests.support.rig import Rig, message, tool_call, trajectory_of
from tests.support.virtual_time import VirtualTimeLoop
from workers.agent.worker import AgentSettings, AgentWorker
from workers.executor import Executor
from workers.inbox import Inbox
from workers.spec import EnvironmentSpec, Item, RewardSpec, Rollout
from workers.verifier.worker import VerifierWorker

TASKS: Final = 4
TOOL_CALLS: Final = 2
#: Of virtual time.
HOME_S: Final = 300.0
LIMITS: Final = Limits(max_steps=10, timeout_s=900.0, call_timeout_s=600.0)
KINDS: Final = ("agent", "executor", "verifier")
ACTIONS: Final = ("kill", "kill", "cut", "duplicate", "flush")


class Event(NamedTuple):
    """Something that happens after so many turns of the loop."""

    turns: int
    action: str
    whom: int


EVENTS = st.lists(
    st.builds(Event, st.integers(0, 40), st.sampled_from(ACTIONS), st.integers(0, 5)), max_size=8
)


async def _score(rollout: Rollout, ctx: object) -> float:
    for _ in range(3):
        await asyncio.sleep(0)
    return 0.5 if rollout.answer == "2 4" else 0.25


def _spec(plain: bool) -> EnvironmentSpec:
    return EnvironmentSpec(
        name="env", rewards=[RewardSpec("score", 1.0, _score, needs_ctx=not plain)]
    )


def _answer(items: list[Item], call: ModelCall) -> list[Item]:
    outputs = [i["output"] for i in items if i.get("type") == "function_call_output"]
    if len(outputs) == TOOL_CALLS:
        return [message(" ".join(outputs))]
    return [tool_call("double", f"c{len(outputs)}", x=len(outputs) + 1)]


class Careless(MemoryBroker):
    """Loses some hints, says others twice or late."""

    chance: random.Random

    def publish_hint(self, message: Outgoing) -> None:
        luck = self.chance.random()
        if luck < 0.1:
            return
        super().publish_hint(message)
        if luck < 0.3:
            asyncio.get_running_loop().call_later(luck, super().publish_hint, message)


class Process:
    """One worker of a kind; kill it as often as you like."""

    def __init__(self, world: "World", kind: str) -> None:
        self.world = world
        self.kind = kind
        self.executor: Executor | None = None
        self.broker = world.connect()
        self.journal = Mortal(world.rig.journal)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Serve; returns once it does."""
        serving = asyncio.Event()
        self._task = asyncio.create_task(self._run(serving))
        await serving.wait()

    async def _run(self, serving: asyncio.Event) -> None:
        try:
            async with AsyncExitStack() as stack:
                sources = await self._sources(stack)
                await serve(self.broker, sources, stop=asyncio.Event(), serving=serving)
        except* BrokerClosed:
            assert self.journal.dead  # the last words of the dead

    async def _sources(self, stack: AsyncExitStack) -> Sequence[Source]:
        rig, journal = self.world.rig, cast(Journal, self.journal)
        if self.kind == "executor":
            self.executor = Executor(self.broker, journal)
            await stack.enter_async_context(self.executor.open())
            model, tool = rig.model_handler(self.executor), rig.tool_handler(self.executor)
            models = [Source(model_queue(lane, "m"), 3, model, "model") for lane in LANES]
            return [*models, Source(tool_queue(rig.spec.name), 3, tool, "tool")]
        inbox = Inbox(self.broker, journal, new_worker_id(self.kind), sweep_s=1.0)
        await stack.enter_async_context(inbox.open())
        if self.kind == "verifier":
            return VerifierWorker(self.broker, journal, inbox, {rig.spec.name: rig.spec}).sources()
        numbers = AgentSettings(slots=2, lanes=(*LANES, "suspect"))
        worker = AgentWorker(
            self.broker, journal, rig.runs, inbox, {rig.spec.name: rig.spec}, numbers
        )
        await stack.enter_async_context(worker.open())
        return worker.sources()

    @property
    def out(self) -> int:
        """Calls that it executes, those too whose deliveries a cut connection took back."""
        return 0 if self.executor is None else len(self.executor._running)

    async def kill(self) -> None:
        """Without a word: what it held goes to others at once."""
        assert self._task is not None
        self.journal.dead = True
        for lease in self.journal.leases:  # they run out in real seconds, which we do not wait for
            await self.world.rig.journal.end_lease(lease)
        await self.broker.close()
        self._task.cancel()
        await asyncio.wait([self._task])
        if not self._task.cancelled():
            self._task.result()


class World:
    """Two processes of each kind over one broker and one journal."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.rig = Rig(_spec(plain=seed % 2 == 0), self._model, {"double": self._double})
        self.processes: list[Process] = []
        self.forgiven = 0
        self.flushed = False

    def connect(self) -> MemoryBroker:
        """A connection of one's own."""
        broker = Careless(self.rig.node._node)
        broker.chance = self.chance
        return broker

    async def _model(self, items: list[Item], call: ModelCall) -> list[Item]:
        await self._work()
        return _answer(items, call)

    async def _double(self, arguments: dict[str, Any]) -> str:
        await self._work()
        return str(arguments["x"] * 2)

    async def _work(self) -> None:
        for _ in range(self.chance.randrange(6)):
            await asyncio.sleep(0)

    async def play(self, events: Sequence[Event]) -> None:
        """Let it all happen, then bring the run home."""
        async with self.rig_without_executors():
            self.processes = [Process(self, kind) for kind in KINDS for _ in range(2)]
            for process in self.processes:
                await process.start()
            await self.rig.submit(*range(TASKS), limits=LIMITS)
            for event in events:
                for _ in range(event.turns):
                    await asyncio.sleep(0)
                await self._happen(event)
            async with asyncio.timeout(HOME_S), self.rig.arrived:
                await self.rig.arrived.wait_for(self._is_complete)
            for process in self.processes:
                await process.kill()

    def rig_without_executors(self) -> Rig:
        """The rig's own executors can't die."""
        self.rig.executes = False
        return self.rig

    def _is_complete(self) -> bool:
        return len({r.rollout_id for r in self.rig.results}) == TASKS

    async def _happen(self, event: Event) -> None:
        process = self.processes[event.whom]
        match event.action:
            case "kill":
                self.forgiven += process.out
                await process.kill()
                self.processes[event.whom] = Process(self, process.kind)
                await self.processes[event.whom].start()
            case "cut":
                process.broker.break_connection()
            case "duplicate":
                await self.rig.submit(event.whom % TASKS, limits=LIMITS)
            case "flush":
                self.flushed = True
                self.rig.journal.table.restore(MemoryTable())

    def check(self) -> None:
        """The oracle."""
        said = defaultdict(set)
        for result in self.rig.results:
            trajectory = trajectory_of(result)
            assert trajectory.status == "completed", trajectory.error
            texts = [str(e.item) for e in main_transcript(trajectory, forest(trajectory.calls))]
            said[result.rollout_id].add((result.verdict.reward, *texts))
        assert {r: len(variants) for r, variants in said.items()} == {
            f"r/{i}/0": 1 for i in range(TASKS)
        }
        assert all(reward == 0.5 for variants in said.values() for reward, *_ in variants)
        again = Counter({call: n - 1 for call, n in self.rig.calls.items() if n > 1})
        assert self.flushed or again.total() <= self.forgiven, again


def play(events: Sequence[Event], seed: int) -> None:
    """One schedule."""
    world = World(seed)
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(world.play(events))
    world.check()


_WANTED: Final = int(os.environ.get("WARREN_EXAMPLES", "0"))


@settings(
    max_examples=_WANTED or 60,
    deadline=None,
    derandomize=not _WANTED,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(events=EVENTS, seed=st.integers(0, 2**16))
def test_no_schedule_loses_doubles_or_repeats(events: Sequence[Event], seed: int) -> None:
    play(events, seed)
