"""Scores stored rollouts again, without running their agents.

Every reward runs in a process of its own where the environment can be loaded there, so that no
stored rollout can end the command. Judges are asked through an embedded gateway.
"""

import asyncio
import itertools
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager

import msgspec

from broker.journal.base import Run
from broker.journal.memory import MemoryJournal, MemoryRuns
from broker.memory import MemoryBroker
from broker.messages import Failure, Verdict
from broker.names import new_worker_id
from broker.serve import serve
from sinks.base import Output
from sinks.rows import RowDict, encode
from sinks.totals import RowSummary
from warren.connections import Connections
from warren.hosting import Plan, isolation_of, open_model
from warren.stored import can_be_scored, rollout_in, scored_again, task_in
from workers.inbox import Inbox
from workers.isolation import Isolation
from workers.model_gateway.config import ModelConfig
from workers.owner import Nondeterministic
from workers.rewards import Scored, evaluate, unpack_rollout
from workers.spec import EnvironmentSpec, RewardSpec
from workers.verifier.isolated import evaluate_isolated
from workers.verifier.judge import Judge
from workers.verifier.scoring import SCORE_TIMEOUT_S, verdict_of


class Scorer:
    """Scores rows of one environment."""

    def __init__(
        self,
        spec: EnvironmentSpec,
        journal: MemoryJournal,
        inbox: Inbox,
        isolation: Isolation | None,
    ) -> None:
        self._spec = spec
        self._journal = journal
        self._inbox = inbox
        self._isolation = isolation

    async def score(self, row: RowDict) -> RowDict:
        """The row with a new verdict; as it is where its rollout failed."""
        return scored_again(row, await self._verdict(row)) if can_be_scored(row) else row

    async def _verdict(self, row: RowDict) -> Verdict:
        task = task_in(row)
        run = await self._inbox.take(task.journal_key)
        if not isinstance(run, Run):
            raise RuntimeError(f"{task.rollout_id} stands twice in the input")
        packed = rollout_in(row)
        with self._inbox.own(task.journal_key, run) as owner:
            judge = Judge(owner, task, self._spec.judge_model)

            async def one(reward: RewardSpec) -> Scored:
                if reward.needs_session:
                    message = f"reward {reward.name!r} needs the session, which has ended"
                    return Scored(error=Failure(kind="verifier", message=message))
                if self._isolation is not None:
                    return await evaluate_isolated(
                        self._isolation, reward, packed, judge, SCORE_TIMEOUT_S
                    )
                rollout = unpack_rollout(packed, self._spec)
                return await evaluate(self._spec, reward, rollout, judge, SCORE_TIMEOUT_S)

            try:
                verdict = await verdict_of(self._spec, one)
            except Nondeterministic as e:
                verdict = Verdict(reward=None, error=Failure(kind="verifier", message=str(e)))
        await self._journal.committed([task.journal_key])  # nothing of it is needed any more
        return msgspec.structs.replace(verdict, calls=judge.records)


@asynccontextmanager
async def scorer(
    spec: EnvironmentSpec, models: Mapping[str, ModelConfig]
) -> AsyncGenerator[Scorer, None]:
    """A scorer with a gateway of its own for the judge."""
    broker, journal, stop = MemoryBroker(), MemoryJournal(), asyncio.Event()
    plan = Plan(environments={spec.name: spec}, models=models)
    inbox = Inbox(broker, journal, new_worker_id("verifier"))
    isolation = isolation_of(spec)
    try:
        async with (
            open_model(Connections(broker, journal, MemoryRuns()), plan) as sources,
            inbox.open(),
            asyncio.TaskGroup() as group,
        ):
            group.create_task(serve(broker, sources, stop=stop))
            try:
                yield Scorer(spec, journal, inbox, isolation)
            finally:
                stop.set()
    finally:
        if isolation is not None:
            await isolation.close()
        await broker.close()


async def reverify(
    rows: Iterable[RowDict],
    scorer: Scorer,
    output: Output,
    *,
    concurrency: int,
    on_written: Callable[[RowSummary], object],
) -> None:
    """Score the rows that `output` has not yet, and write them as they come, batch by batch."""
    known = output.ids
    missing = (
        row
        for row in rows
        if (row["warren"]["task_index"], row["warren"]["repeat_index"]) not in known
    )
    while batch := await asyncio.to_thread(lambda: list(itertools.islice(missing, concurrency))):
        async with asyncio.TaskGroup() as group:
            scored = [group.create_task(scorer.score(row)) for row in batch]
        done = [encode(task.result()) for task in scored]
        for summary in await asyncio.to_thread(output.commit, done):
            on_written(summary)
