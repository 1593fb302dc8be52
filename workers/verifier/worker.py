"""One trajectory's life in a verifier worker: take it, score it, publish the result, ack.

A verification is owned and journaled like a rollout, under `<rollout>/verify`: killed between two
judge votes, no finished judge call is made again; the verdict is stored first-wins together with
the digest of what it judged, so a redelivery scores nothing twice and mixes nothing. Where rewards
can make no calls there is nothing else to keep, and one operation does (plain.py).
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from broker import codec
from broker.base import Broker, Delivery, Outgoing
from broker.crashpoints import crash_at
from broker.errors import TooLarge, Unroutable, WireError
from broker.journal.base import Committed, Journal, Owned, Run
from broker.messages import (
    Failure,
    Result,
    Task,
    Trajectory,
    Verdict,
    begin_by,
    waited_too_long,
)
from broker.names import shard_of
from broker.parting import parting
from broker.results import encode_result
from broker.serve import Ack, GiveBack, Later, Outcome, Source, publish_patiently
from broker.topology import (
    RESULT,
    SINK_SHARDS,
    TASK,
    result_key,
    task_key,
    task_queue,
    verify_queue,
)
from workers.inbox import Inbox
from workers.isolation import CHILD, Isolation
from workers.losses import MAX_LOST, Losses
from workers.owner import Nondeterministic, Owner, Replaced
from workers.rewards import NoJudge, Scored, evaluate
from workers.sessions import MAX_ATTEMPTS, SessionGone
from workers.spec import EnvironmentSpec, RewardSpec, VerifierContext
from workers.verifier.isolated import evaluate_isolated
from workers.verifier.judge import Judge
from workers.verifier.plain import is_first, is_plain, may_wait
from workers.verifier.records import VERDICT_PATH, finish_verdict, keep_verdict, known_verdict
from workers.verifier.scoring import SCORE_TIMEOUT_S, Evaluate, Unscored, verdict_of
from workers.verifier.sessions import close_session, evaluate_at_owner

log = logging.getLogger(__name__)

_NO_JUDGE: Final = NoJudge()
#: Taken so often without progress, it may have ended its worker: rewards run isolated from then on.
SUSPECT_TAKES: Final = 2
#: Takes without a verdict after which a trajectory is not scored any more.
MAX_TAKES: Final = 6
#: The same where rewards can be isolated: then it is not this trajectory that ends its workers.
MAX_ISOLATED_TAKES: Final = 50


class VerifierWorker:
    """Scores the trajectories of the environments it was given."""

    def __init__(
        self,
        broker: Broker,
        journal: Journal,
        inbox: Inbox,
        environments: Mapping[str, EnvironmentSpec],
        *,
        prefetch: int = 64,
        score_timeout_s: float = SCORE_TIMEOUT_S,
        max_lost: int = MAX_LOST,
        unhealthy: asyncio.Event | None = None,
        child: Sequence[str] = CHILD,
    ) -> None:
        self.losses = Losses(environments, limit=max_lost, unhealthy=unhealthy)
        self._broker = broker
        self._journal = journal
        self._inbox = inbox
        self._environments = environments
        self._prefetch = prefetch
        self._score_timeout_s = score_timeout_s
        self._isolations = {
            name: Isolation(spec.reference, child)
            for name, spec in environments.items()
            if spec.reference
        }
        self._plain = {name for name, spec in environments.items() if is_plain(spec)}

    async def close(self) -> None:
        """End the processes that isolated rewards ran in."""
        for isolation in self._isolations.values():
            await isolation.close()

    def sources(self) -> list[Source]:
        """What to serve."""
        return [
            Source(verify_queue(name), self._prefetch, self.handle, "verify")
            for name in self._environments
        ]

    async def handle(self, delivery: Delivery) -> Outcome:
        """Score one trajectory and publish its result."""
        trajectory = codec.decode(Trajectory, delivery.body, delivery.kind)
        task = codec.read(Task, trajectory.task)
        spec = self._environments.get(task.environment)
        if spec is None:
            return GiveBack()
        verdict: Verdict | Outcome = Verdict(reward=None)
        body = delivery.body
        if trajectory.status != "failed" and spec.rewards:
            try:
                verdict = await self._verdict_patiently(trajectory, task, spec, delivery)
            except SessionGone as e:
                if not _is_last(trajectory, task):
                    return await self._again(trajectory, task)
                body = _without_session(trajectory, e)
        if not isinstance(verdict, Verdict):
            return verdict
        if trajectory.session:
            await close_session(self._broker, task, trajectory.rollout, trajectory.session)
        return await self._publish(task, body, verdict)

    async def _verdict_patiently(
        self, trajectory: Trajectory, task: Task, spec: EnvironmentSpec, delivery: Delivery
    ) -> Verdict | Outcome:
        while True:
            try:
                return await self._verdict(trajectory, task, spec, delivery)
            except Replaced:
                log.info("verification replaced", extra={"rollout": trajectory.rollout})

    async def _again(self, trajectory: Trajectory, task: Task) -> Outcome:
        """Its session has gone before it was scored: let the rollout start again."""
        log.warning("session lost, starting again", extra={"rollout": trajectory.rollout})
        attempt = await self._journal.restart(trajectory.rollout, trajectory.epoch)
        if attempt is not None:  # else somebody runs the new attempt, or its row is committed
            await self._broker.declare([task_queue("resume", task.environment)])
            body = codec.encode(msgspec.structs.replace(task, lane="resume"))
            key = task_key("resume", task.environment)
            await publish_patiently(
                self._broker, Outgoing(TASK.name, key, body, codec.kind_of(Task))
            )
        return Ack()

    async def _verdict(
        self, trajectory: Trajectory, task: Task, spec: EnvironmentSpec, delivery: Delivery
    ) -> Verdict | Outcome:
        key = f"{trajectory.rollout}/verify"
        digest = trajectory.digest or codec.digest(delivery.body)
        plain = spec.name in self._plain and may_wait(task)
        first = is_first(delivery)
        if plain and first and not self.losses.too_many:
            return await self._score_and_keep(key, trajectory, task, spec, digest)
        match await self._inbox.take(key, uncounted=int(plain and not first)):
            case Committed():
                return Ack()
            case Owned():
                return Later(5.0)  # a duplicate of what another worker scores right now
            case Run() as run:
                crash_at("verifier.after_take")
                known = known_verdict(run, digest)
                if known is not None:
                    return known
                return await self._judge(key, run, trajectory, task, spec, digest)

    async def _score_and_keep(
        self, key: str, trajectory: Trajectory, task: Task, spec: EnvironmentSpec, digest: bytes
    ) -> Verdict | Outcome:
        """A plain verification (plain.py)."""
        try:
            verdict = await self._score_plainly(trajectory, task, spec)
            crash_at("verifier.after_score")
            kept = await keep_verdict(self._journal, key, digest, verdict)
        except asyncio.CancelledError:
            await self._let_go(key, None)
            raise
        return Ack() if kept is None else kept

    async def _score_plainly(
        self, trajectory: Trajectory, task: Task, spec: EnvironmentSpec
    ) -> Verdict:
        try:
            rollout = Unscored(trajectory, task)
        except WireError as e:
            return _unreadable(e)
        return await verdict_of(spec, lambda each: self._here(spec, each, rollout, _NO_JUDGE))

    async def _judge(
        self,
        key: str,
        run: Run,
        trajectory: Trajectory,
        task: Task,
        spec: EnvironmentSpec,
        digest: bytes,
    ) -> Verdict:
        try:
            with self._inbox.own(key, run) as owner:
                limit = MAX_ISOLATED_TAKES if spec.name in self._isolations else MAX_TAKES
                if run.idle_takes > limit:
                    verdict = _gave_up(run.idle_takes - 1)
                elif run.first_taken_at > begin_by(trajectory, task):
                    late = waited_too_long("verify", task.limits.waits.verify_s)
                    verdict = Verdict(reward=None, error=late)
                else:
                    verdict = await self._score(owner, trajectory, task, spec)
                if VERDICT_PATH in run.results:  # about another trajectory of this rollout
                    return verdict
                return await finish_verdict(self._journal, owner, digest, verdict)
        except SessionGone:
            await self._journal.restart(key, run.epoch)  # another attempt asks other things
            raise
        except asyncio.CancelledError:
            await self._let_go(key, run)
            raise

    async def _score(
        self, owner: Owner, trajectory: Trajectory, task: Task, spec: EnvironmentSpec
    ) -> Verdict:
        try:
            rollout = Unscored(trajectory, task)
        except WireError as e:
            return _unreadable(e)
        judge = Judge(owner, task, spec.judge_model)
        evaluate = self._evaluate(owner, task, spec, rollout, trajectory.session, judge)
        try:
            verdict = await verdict_of(spec, evaluate)
        except Nondeterministic as e:
            verdict = Verdict(reward=None, error=Failure(kind="verifier", message=str(e)))
        return msgspec.structs.replace(verdict, calls=judge.records)

    def _evaluate(
        self,
        owner: Owner,
        task: Task,
        spec: EnvironmentSpec,
        rollout: Unscored,
        session: bytes,
        judge: Judge,
    ) -> Evaluate:
        """Each reward where it belongs: beside its session, alone if dangerous, else here."""
        isolation = self._isolations.get(spec.name)
        suspect = owner.run.idle_takes >= SUSPECT_TAKES

        async def run(reward: RewardSpec) -> Scored:
            if reward.needs_session:
                return await evaluate_at_owner(
                    self._broker, owner, task, reward, rollout.packed, session
                )
            timeout_s = self._score_timeout_s
            if isolation and (suspect or reward.isolated or self.losses.too_many):
                return await evaluate_isolated(isolation, reward, rollout.packed, judge, timeout_s)
            return await self._here(spec, reward, rollout, judge)

        return run

    async def _here(
        self, spec: EnvironmentSpec, reward: RewardSpec, rollout: Unscored, ctx: VerifierContext
    ) -> Scored:
        try:
            seen = rollout.rollout(spec)
        except ValueError as e:
            message = f"the final state can't be read: {e}"
            return Scored(error=Failure(kind="verifier", message=message))
        scored = await evaluate(spec, reward, seen, ctx, self._score_timeout_s)
        self.losses.watch(spec.name, reward.name, overdue=scored.overdue, lost=scored.lost)
        return scored

    async def _let_go(self, key: str, run: Run | None) -> None:
        """Stopping: whoever gets it next is to know that nobody died of it."""
        if not await parting(self._release(key, run)):
            log.warning("verification not released", extra={"rollout": key})

    async def _release(self, key: str, run: Run | None) -> None:
        """One that nobody owns is taken first, so that there is a record of it."""
        taken = run or await self._journal.take(key, self._inbox.worker_id)
        if isinstance(taken, Run):
            await self._journal.release(key, taken.epoch, self._inbox.worker_id)

    async def _publish(self, task: Task, trajectory: bytes, verdict: Verdict) -> Outcome:
        """Send the result to every audience; keep the trajectory where one can't take it."""
        try:
            for message in results_for(task, trajectory, verdict):
                await publish_patiently(self._broker, message)
                crash_at("verifier.after_publish")
        except Unroutable as e:
            log.error("result has no taker", extra={"rollout": task.rollout_id, "key": e.key})
            return Later(30.0)
        return Ack()


def results_for(task: Task, trajectory: bytes, verdict: Verdict) -> Sequence[Outgoing]:
    """The finished rollout's messages, one per audience."""
    result = Result(
        rollout_id=task.rollout_id,
        task_index=task.task_index,
        repeat=task.repeat,
        run=task.run,
        generation=task.generation,
        trajectory=trajectory,
        verdict=verdict,
        attempt=task.attempt,
    )
    try:
        body = encode_result(result)
    except TooLarge:  # the judges' conversations are what can make it so
        body = encode_result(
            msgspec.structs.replace(result, verdict=msgspec.structs.replace(verdict, calls=()))
        )
    shard = shard_of(task.rollout_id, SINK_SHARDS)
    return [
        Outgoing(
            exchange=RESULT.name,
            key=result_key(who, task.run, shard),
            body=body,
            kind=codec.kind_of(Result),
        )
        for who in task.audiences
    ]


def _is_last(trajectory: Trajectory, task: Task) -> bool:
    """Whether no further attempt of its task is to be made."""
    return trajectory.attempt - task.attempt + 1 >= MAX_ATTEMPTS


def _without_session(trajectory: Trajectory, error: SessionGone) -> bytes:
    message = f"its session was lost in {MAX_ATTEMPTS} attempts: {error}"
    failure = Failure(kind="infra", message=message)
    failed = msgspec.structs.replace(trajectory, status="failed", error=failure, digest=b"")
    return codec.encode(failed)


def _unreadable(error: WireError) -> Verdict:
    failure = Failure(kind="infra", message=f"unreadable trajectory: {error}")
    return Verdict(reward=None, error=failure)


def _gave_up(takes: int) -> Verdict:
    message = f"its verifier ended {takes} times without a verdict"
    return Verdict(reward=None, error=Failure(kind="verifier", message=message))
