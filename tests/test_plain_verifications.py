"""Verifications that need no calls: one operation of the journal, and every promise of the others.

Rewards here say another number each time they are asked, so whatever is scored twice shows.
"""

import asyncio
import itertools
import os
import textwrap
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest

from broker import codec
from broker.base import AGAIN_HEADER, Header, Outgoing
from broker.errors import JournalUnavailable
from broker.journal.base import Committed, Journal, Run, Stored
from broker.journal.memory import MemoryTable
from broker.messages import Limits, ModelCall, Trajectory, Waits
from broker.topology import VERIFY, verify_queue
from tests.support.hand import Hand
from tests.support.mortal import doomed_verifier
from tests.support.rig import Rig, message
from warren import Environment, correctness, efficiency, load_environment, quality
from workers.spec import EnvironmentSpec, Item, RewardSpec, Rollout, VerifierContext
from workers.verifier.plain import is_plain
from workers.verifier.worker import MAX_TAKES


class Reward:
    """Says how often it was asked, once it is told to."""

    def __init__(self) -> None:
        self.asked = 0
        self.came: asyncio.Queue[None] = asyncio.Queue()
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def __call__(self, rollout: Rollout, ctx: object) -> float:
        self.asked += 1
        said = self.asked / 100
        self.came.put_nowait(None)
        await self.go_on.wait()
        return said

    async def comes(self) -> None:
        async with asyncio.timeout(10.0):
            await self.came.get()


def says_done(items: list[Item], call: ModelCall) -> list[Item]:
    return [message("done")]


def rig_of(reward: Reward) -> Rig:
    spec = EnvironmentSpec(name="env", rewards=[RewardSpec("said", 1.0, reward, needs_ctx=False)])
    return Rig(spec, says_done)


async def publish(rig: Rig, digest: bytes = b"d", headers: dict[str, Header] | None = None) -> None:
    """A trajectory of the rig's first task."""
    task = rig.task()
    await rig.node.declare([verify_queue("env")])
    trajectory = Trajectory(
        task=codec.pack(task),
        rollout=task.journal_key,
        epoch="e",
        attempt=1,
        status="completed",
        digest=digest,
    )
    body, kind = codec.encode(trajectory), codec.kind_of(Trajectory)
    await rig.node.publish(Outgoing(VERIFY.name, "env", body, kind, headers or {}))


def key_of(rig: Rig) -> str:
    return f"{rig.task().journal_key}/verify"


class Watched:
    """A journal whose operations on verifications are counted."""

    def __init__(self, journal: Any) -> None:
        self.operations: Counter[str] = Counter()
        self._journal = journal

    def __getattr__(self, name: str) -> Any:
        operation = getattr(self._journal, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            if args and str(args[0]).endswith("/verify"):
                self.operations[name] += 1
            return operation(*args, **kwargs)

        return counted


async def test_it_is_one_operation() -> None:
    rig = rig_of(Reward())
    watched = Watched(rig.journal)
    rig.journal = cast(Any, watched)
    async with rig, rig.verifier():
        await publish(rig)
        (result,) = await rig.wait(1)
    assert result.verdict.reward == 0.01
    assert watched.operations == {"keep_first": 1}


async def _of_rollout(rollout: Rollout) -> float:
    return 1.0


async def _of_ctx(rollout: Rollout, judge: VerifierContext) -> float:
    return 1.0


async def _of_session(rollout: Rollout, session: object) -> float:
    return 1.0


@pytest.mark.parametrize(
    ("reward", "isolated", "plain"),
    [
        (_of_rollout, False, True),
        (lambda rollout: 1.0, False, True),
        (correctness(lambda rollout: True), False, True),
        (efficiency(steps=3), False, True),
        (_of_rollout, True, False),
        (_of_ctx, False, False),
        (_of_session, False, False),
        (quality("{answer}", {"good": "it is good"}), False, False),
    ],
)
def test_what_a_reward_takes_tells_whether_it_can_make_calls(
    reward: Any, isolated: bool, plain: bool
) -> None:
    environment = Environment("env")
    environment.session(_session)
    environment.reward(name="r", isolated=isolated)(reward)
    assert is_plain(environment.spec()) is plain


async def _session() -> AsyncIterator[object]:
    yield object()


async def test_what_a_verifier_stored_and_could_not_publish_is_said_and_not_scored_again() -> None:
    reward = Reward()
    async with rig_of(reward) as rig:
        async with doomed_verifier(rig, dies_after="keep_first") as stored:
            await publish(rig)
            await stored.wait()
        async with rig.verifier():
            (result,) = await rig.wait(1)
    assert (result.verdict.reward, reward.asked) == (0.01, 1)


async def test_who_kills_his_verifiers_is_given_up_after_as_many_as_ever() -> None:
    reward = Reward()
    reward.go_on.clear()
    async with rig_of(reward) as rig:
        await publish(rig)
        for _ in range(MAX_TAKES):
            async with doomed_verifier(rig):
                await reward.comes()
        async with rig.verifier():
            (result,) = await rig.wait(1)
    assert result.verdict.reward is None
    assert f"ended {MAX_TAKES} times without a verdict" in str(result.verdict.error)
    assert reward.asked == MAX_TAKES


ALONE = """
import os
from warren import Environment, Rollout
env = Environment("env")

@env.reward
def in_a_child(rollout: Rollout) -> float:
    return float(os.getpid() != {pid})
"""


@pytest.fixture
def spec(tmp_path: Path) -> EnvironmentSpec:
    """Whose reward is 1 in a process of its own."""
    path = tmp_path / "alone.py"
    path.write_text(textwrap.dedent(ALONE.format(pid=os.getpid())), encoding="utf-8")
    return load_environment(str(path)).spec()


async def verdict_after(spec: EnvironmentSpec, *accidents: str) -> float | None:
    """Of one trajectory, to which these things have happened."""
    async with Rig(spec, says_done) as rig:
        await publish(rig, headers={AGAIN_HEADER: 1} if "published again" in accidents else {})
        if "given back" in accidents:
            hand, holder = Hand(), rig.node.connect()
            async with holder.consume(verify_queue("env").name, 1, hand.take):
                await hand.next()
            await holder.close()
        if "released" in accidents:
            run = await rig.journal.take(key_of(rig), "stopped")
            assert isinstance(run, Run)
            await rig.journal.release(key_of(rig), run.epoch, "stopped")
        async with rig.verifier() as verifier:
            (result,) = await rig.wait(1, 60)
            await verifier.close()
            return result.verdict.reward


async def test_who_may_have_killed_a_verifier_is_isolated_the_second_time(
    spec: EnvironmentSpec,
) -> None:
    assert await verdict_after(spec) == 0.0
    assert await verdict_after(spec, "given back") == 1.0
    assert await verdict_after(spec, "published again") == 1.0


async def test_who_was_stopped_politely_is_not(spec: EnvironmentSpec) -> None:
    assert await verdict_after(spec, "given back", "released") == 0.0


async def test_a_verifier_that_is_stopped_while_it_scores_leaves_a_record_without_a_take() -> None:
    reward = Reward()
    reward.go_on.clear()
    async with rig_of(reward) as rig:
        await publish(rig)
        for _ in range(MAX_TAKES + 1):
            async with rig.verifier():
                await reward.comes()
        run = await rig.journal.take(key_of(rig), "looks", counts=False)
        assert isinstance(run, Run)
        assert run.idle_takes == 0
        await rig.journal.release(key_of(rig), run.epoch, "looks")
        reward.go_on.set()
        async with rig.verifier():
            (result,) = await rig.wait(1)
    assert result.verdict.reward == (MAX_TAKES + 2) / 100


async def test_two_copies_at_two_verifiers_at_once_get_the_same_verdict() -> None:
    reward = Reward()
    reward.go_on.clear()
    async with rig_of(reward) as rig, rig.verifier(), rig.verifier():
        for _ in range(2):
            await publish(rig)
        for _ in range(2):
            await reward.comes()
        reward.go_on.set()
        results = await rig.wait(2)
    assert reward.asked == 2
    assert results[0].verdict == results[1].verdict


async def test_a_copy_that_says_so_is_not_scored_again() -> None:
    reward = Reward()
    async with rig_of(reward) as rig, rig.verifier():
        await publish(rig)
        await rig.wait(1)
        await publish(rig, headers={AGAIN_HEADER: 1})
        results = await rig.wait(2)
    assert (reward.asked, {r.verdict.reward for r in results}) == (1, {0.01})


async def test_an_agent_that_takes_a_rollout_over_says_that_its_trajectory_may_be_a_copy() -> None:
    """As after a death between the trajectory's publication and the task's acknowledgement."""
    reward = Reward()
    async with rig_of(reward) as rig, rig.verifier():
        for count in (1, 2):
            async with rig.agent():
                await rig.submit(0)
                results = await rig.wait(count)
    assert (reward.asked, {r.verdict.reward for r in results}) == (1, {0.01})


async def test_another_trajectory_of_the_same_rollout_has_a_verdict_of_its_own() -> None:
    reward = Reward()
    async with rig_of(reward) as rig, rig.verifier():
        for count, digest in enumerate((b"one", b"two", b"one"), 1):
            await publish(rig, digest)
            results = await rig.wait(count)
    assert [r.verdict.reward for r in results] == [0.01, 0.02, 0.01]


async def test_of_a_committed_rollout_nothing_is_published() -> None:
    reward = Reward()
    async with rig_of(reward) as rig:
        await rig.journal.committed([rig.task().journal_key])
        async with rig.verifier():
            await publish(rig)
            await reward.comes()
        assert await _is_empty(rig)
    assert rig.results == []


async def _is_empty(rig: Rig) -> bool:
    """Whether nobody gave back what was published."""
    hand, looking = Hand(), rig.node.connect()
    async with looking.consume(verify_queue("env").name, 1, hand.take):
        empty = await hand.stays_empty()
    await looking.close()
    return empty


class Away:
    """A journal that does not answer for a while."""

    def __init__(self, journal: Journal, refusals: int) -> None:
        self._journal = journal
        self._refusals = itertools.count(refusals, -1)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._journal, name)

    async def keep_first(self, *what: Any) -> Stored | Committed:
        if next(self._refusals) > 0:
            raise JournalUnavailable("away")
        return await self._journal.keep_first(*what)


async def test_while_the_journal_is_away_the_verdict_stays_in_hand() -> None:
    reward = Reward()
    rig = rig_of(reward)
    rig.journal = cast(Any, Away(rig.journal, 2))
    async with rig, rig.verifier():
        await publish(rig)
        (result,) = await rig.wait(1)
    assert (result.verdict.reward, reward.asked) == (0.01, 1)


async def test_a_journal_that_is_emptied_meanwhile_costs_nothing() -> None:
    reward = Reward()
    reward.go_on.clear()
    async with rig_of(reward) as rig, rig.verifier():
        await publish(rig)
        await reward.comes()
        rig.journal.table.restore(MemoryTable())
        reward.go_on.set()
        (result,) = await rig.wait(1)
    assert (result.verdict.reward, reward.asked) == (0.01, 1)


async def test_one_that_had_to_be_begun_in_time_is_taken_before_it_is_scored() -> None:
    """So that the journal can tell, however late it comes back."""
    reward = Reward()
    rig = rig_of(reward)
    watched = Watched(rig.journal)
    rig.journal = cast(Any, watched)
    async with rig, rig.agent(), rig.verifier():
        await rig.submit(0, limits=Limits(timeout_s=60.0, waits=Waits(verify_s=60.0)))
        await rig.wait(1)
    assert watched.operations["take"] == 1
    assert watched.operations["keep_first"] == 0
