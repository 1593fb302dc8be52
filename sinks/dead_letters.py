"""Dead letters are settled: whoever waits for one hears of it, and every task still ends as a row.

    task        -> a failed result to its audiences, unless it is committed, ended or being run
    model, tool -> an error result, stored first-wins and sent to the rollout's owner, who goes on
    trajectory  -> a failed result that carries it
    result      -> a failed result to the one audience that could not take it
    anything unreadable, or dead a second time -> nobody to tell

What outlived its queue's deadline (`Waits`) is settled like that only if nobody has begun on it in
time; else it goes on, and nothing is kept.

Then the raw message moves to the `kept` queue (confirmed), which `warren dlq` shows, and only
then it is acknowledged. Settling twice is harmless: all of it is first-wins.
"""

import logging
import time
import uuid
from typing import Final

import msgspec

from broker import codec
from broker.base import Broker, Delivery, Outgoing
from broker.errors import Unroutable, WireError
from broker.journal.base import (
    CallRef,
    Committed,
    Finished,
    Found,
    Go,
    Gone,
    Journal,
    Lost,
    Owned,
    Run,
)
from broker.messages import (
    Call,
    Failure,
    ModelCall,
    ModelResult,
    Reply,
    ReplyKind,
    Result,
    Task,
    ToolCall,
    ToolResult,
    Trajectory,
    Verdict,
    begin_by,
    waited_too_long,
)
from broker.names import shard_of
from broker.serve import (
    QUEUE_HEADER,
    REASON_HEADER,
    Ack,
    Outcome,
    Source,
    own_headers,
    publish_patiently,
)
from broker.topology import (
    KEPT,
    REPLY,
    RESULT,
    SINK_SHARDS,
    TASK,
    VERIFY,
    dead_queue,
    result_key,
    task_key,
)

log = logging.getLogger(__name__)

#: On a result that settles a dead letter: should it die as well, nothing is made of it again.
SETTLES_HEADER: Final = "warren-settles"
#: On a kept message: the key that it died under, for whoever looks at the raw one.
KEY_HEADER: Final = "warren-key"
_PREFETCH: Final = 16
#: The broker's word for what waited longer than its publisher wished.
EXPIRED: Final = "expired"


def dead_letter_source(broker: Broker, journal: Journal) -> Source:
    """The dead letters' queue with its handler; the `kept` queue must be declared besides."""
    return Source(dead_queue(), _PREFETCH, DeadLetters(broker, journal).handle, stage=None)


class DeadLetters:
    """Settles what nobody could handle."""

    def __init__(self, broker: Broker, journal: Journal) -> None:
        self._broker = broker
        self._journal = journal
        self._inbox = f"dead-{uuid.uuid4().hex}"

    async def handle(self, delivery: Delivery) -> Outcome:
        """Settle one letter, keep it, then acknowledge it."""
        reason, queue = cause(delivery)
        if reason == EXPIRED and await self._goes_on(delivery):
            return Ack()
        log.error("settling a dead letter", extra={"queue": queue, "reason": reason})
        if SETTLES_HEADER not in delivery.headers and queue != dead_queue().name:
            try:
                await self._settle(delivery, Failure(kind="infra", message=reason, where=queue))
            except (WireError, Unroutable) as e:
                log.error("dead letter only kept", extra={"queue": queue, "error": str(e)})
        await publish_patiently(self._broker, kept(delivery, reason, queue))
        return Ack()

    async def _goes_on(self, letter: Delivery) -> bool:
        """Whether somebody began on it in time: then it is sent again, without a deadline.

        It came back to its queue meanwhile, from whoever had it.
        """
        try:
            again = await self._begun(letter)
        except WireError:
            return False
        if again is not None:
            await publish_patiently(self._broker, again)
        return again is not None

    async def _begun(self, letter: Delivery) -> Outgoing | None:
        match letter.kind.partition(".")[0]:
            case "task":
                task = codec.decode(Task, letter.body, letter.kind)
                if not await self._was_taken(task.journal_key, task.begin_by):
                    return None
                key = task_key("resume", task.environment)
                return Outgoing(TASK.name, key, letter.body, letter.kind)
            case "trajectory":
                trajectory = codec.decode(Trajectory, letter.body, letter.kind)
                task = codec.read(Task, trajectory.task)
                key = f"{trajectory.rollout}/verify"
                if not await self._was_taken(key, begin_by(trajectory, task)):
                    return None
                return Outgoing(VERIFY.name, task.environment, letter.body, letter.kind)
        return None

    async def _was_taken(self, key: str, begin_by: float) -> bool:
        """Whether somebody has owned it by then, or does now."""
        now = time.time()
        taken = await self._journal.take(key, self._inbox, counts=False)
        if not isinstance(taken, Run):
            return isinstance(taken, Owned)
        await self._journal.release(key, taken.epoch, self._inbox)
        return taken.attempt > 1 or taken.first_taken_at <= min(begin_by, now)

    async def _settle(self, letter: Delivery, why: Failure) -> None:
        match letter.kind.partition(".")[0]:
            case "task":
                task = codec.decode(Task, letter.body, letter.kind)
                await self._task(task, _late(why, "task", task.limits.waits.task_s) or why)
            case "modelcall":
                error = codec.pack(ModelResult(error=why))
                await self._call(codec.decode(ModelCall, letter.body, letter.kind), error)
            case "toolcall":
                error = codec.pack(ToolResult(output=f"error: {why.message}", error=why))
                await self._call(codec.decode(ToolCall, letter.body, letter.kind), error)
            case "trajectory":
                await self._trajectory(codec.decode(Trajectory, letter.body, letter.kind), why)
            case "result":
                await self._result(codec.decode(Result, letter.body, letter.kind), why, letter.key)

    async def _task(self, task: Task, why: Failure) -> None:
        key = task.journal_key
        taken = await self._journal.take(key, self._inbox, counts=False)
        if isinstance(taken, Owned | Committed):
            return
        if not taken.ended:
            failed = failed_trajectory(task, taken.epoch, taken.attempt, why)
            await self._publish(task, codec.pack(failed), Verdict(reward=None))
            await self._journal.ended(key, taken.epoch)
        await self._journal.release(key, taken.epoch, self._inbox)

    async def _call(self, call: Call, error: bytes) -> None:
        ref = CallRef.of(call)
        begun = await self._journal.begin(ref, force=True)
        if isinstance(begun, Go):
            finished = await self._journal.finish(ref, error, state_version=begun.state_version)
            if isinstance(finished, Finished):
                return self._reply(call, "result", finished.inbox, finished.result)
        if isinstance(begun, Found):
            self._reply(call, "result", begun.inbox, begun.result)
        elif isinstance(begun, Lost):  # its owner uploads and asks again
            self._reply(call, "journal_lost")

    async def _trajectory(self, trajectory: Trajectory, why: Failure) -> None:
        found = await self._journal.look(trajectory.rollout, trajectory.epoch, [])
        if isinstance(found, Gone):
            return
        task = codec.read(Task, trajectory.task)
        error = _late(why, "verify", task.limits.waits.verify_s) or Failure(
            kind="verifier", message=why.message, where=why.where
        )
        await self._publish(task, codec.pack(trajectory), Verdict(reward=None, error=error))

    async def _result(self, result: Result, why: Failure, key: str) -> None:
        """Without what the sink may have choked on; the raw message has it."""
        try:
            trajectory = codec.read(Trajectory, codec.decompress(result.trajectory))
            task = codec.read(Task, trajectory.task)
            bare = failed_trajectory(task, trajectory.epoch, trajectory.attempt, why)
            packed = codec.pack(bare)
        except WireError:
            packed = b""
        await publish_patiently(self._broker, _result_message(key, result_of(result, packed)))

    async def _publish(self, task: Task, trajectory: bytes, verdict: Verdict) -> None:
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
        shard = shard_of(task.rollout_id, SINK_SHARDS)
        for audience in task.audiences:
            message = _result_message(result_key(audience, task.run, shard), result)
            try:
                await publish_patiently(self._broker, message)
            except Unroutable:  # this audience has gone; the others must hear of it all the same
                log.error("failed result has no taker", extra={"key": message.key})

    def _reply(self, call: Call, kind: ReplyKind, inbox: str = "", result: bytes = b"") -> None:
        reply = Reply(
            rollout=call.rollout, epoch=call.epoch, path=call.path, kind=kind, result=result
        )
        self._broker.publish_hint(
            Outgoing(
                exchange=REPLY.name,
                key=inbox or call.reply_to,
                body=codec.encode(reply),
                kind=codec.kind_of(Reply),
                persistent=False,
            )
        )


def cause(delivery: Delivery) -> tuple[str, str]:
    """Why a letter died and in which queue: our own words, else the broker's."""
    headers = delivery.headers
    reason = headers.get(REASON_HEADER) or headers.get("x-first-death-reason") or "unknown"
    queue = headers.get(QUEUE_HEADER) or headers.get("x-first-death-queue") or ""
    return str(reason), str(queue)


def kept(delivery: Delivery, reason: str, queue: str) -> Outgoing:
    """The letter as it came, for `warren dlq` to show and replay."""
    why = {REASON_HEADER: reason, QUEUE_HEADER: queue, KEY_HEADER: delivery.key}
    return Outgoing(
        exchange=KEPT.name,
        key="kept",
        body=delivery.body,
        kind=delivery.kind,
        headers={**own_headers(delivery), **why},
    )


def _late(why: Failure, kind: str, wait_s: float | None) -> Failure | None:
    if why.message != EXPIRED:
        return None
    return msgspec.structs.replace(waited_too_long(kind, wait_s), where=why.where)


def failed_trajectory(task: Task, epoch: str, attempt: int, why: Failure) -> Trajectory:
    """What a rollout leaves that nobody could run."""
    now = time.time()
    return Trajectory(
        task=codec.pack(task),
        rollout=task.journal_key,
        epoch=epoch,
        attempt=attempt,
        status="failed",
        error=why,
        started_at=now,
        finished_at=now,
    )


def result_of(result: Result, trajectory: bytes) -> Result:
    """The same rollout's unscored result with another trajectory; empty bytes make it unreadable,
    of which the sink makes a failed row that says so."""
    return Result(
        rollout_id=result.rollout_id,
        task_index=result.task_index,
        repeat=result.repeat,
        run=result.run,
        generation=result.generation,
        trajectory=trajectory,
        verdict=Verdict(reward=None),
        attempt=result.attempt,
    )


def _result_message(key: str, result: Result) -> Outgoing:
    return Outgoing(
        exchange=RESULT.name,
        key=key,
        body=codec.encode(result),
        kind=codec.kind_of(Result),
        headers={SETTLES_HEADER: 1},
    )
