"""The online trainer's client: submit tasks, receive scored rollouts or groups, ack what was used.

    async with TrainerClient.connect(broker, journal, runs, run=..., ...) as client:
        await client.submit({"prompt": "2+2?", "answer": "4"})
        async for group in client.groups():
            ...one optimiser step...
            await client.ack(group)

Every rollout is delivered until it is acked, and after that never again: its delivery is held, a
second copy replaces the first, and marks in the run's record outlive a crash of the trainer. At
most `window` rollouts are out (submitted or received, and not acked), so a slow trainer slows its
producers, and memory is bounded by the window.
"""

import asyncio
import json
import logging
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple, Self

import msgspec

from broker import codec
from broker.base import MAX_PREFETCH, Broker, Delivery, Outgoing
from broker.errors import JournalUnavailable, WireError
from broker.journal.base import Journal
from broker.journal.runs import RunInfo, Runs, Totals
from broker.journal.totals import add_totals
from broker.messages import Limits, Sampling, Task
from broker.serve import dead_letter, own_headers, publish_patiently
from broker.shared.base import PauseMode, Shared
from broker.topology import RESULT, run_results_queue
from producers.checks import check_row, parse, task_row
from producers.in_hand import InHand, Key, key_of
from producers.policy import update_policy
from producers.publisher import queues_for, task_message
from producers.rollouts import FinishedRollout, RolloutGroup, read_result, totals_of
from producers.run_record import RunConflict

log = logging.getLogger(__name__)

#: RabbitMQ closes the channel of a delivery that is unacked for 30 min; renewal comes well before.
RENEW_AFTER_S: Final = 600.0


class Submitted(NamedTuple):
    """A task that is on its way, `repeats` times."""

    task_index: int
    group_id: str


class TrainerClient:
    """One trainer's end of a run. Made by `connect`."""

    def __init__(
        self,
        broker: Broker,
        journal: Journal,
        runs: Runs,
        *,
        template: Task,
        info: RunInfo,
        next_index: int,
        acked: Sequence[bytes],
        window: int,
        renew_after_s: float,
        shared: Shared | None = None,
    ) -> None:
        self._broker = broker
        self._journal = journal
        self._runs = runs
        self._shared = shared
        self._template = template
        self._info = info
        self._name = template.audiences[0]
        self._files = "sink" in template.audiences
        self._shard = f"{self._name}-{uuid.uuid4().hex}"
        self._totals = Totals()
        self._first_index = self._next_index = next_index
        self._window = window
        self._renew_after_s = renew_after_s
        acked_by = {(info.generation, repeat): bits for repeat, bits in enumerate(acked)}
        self._in_hand = InHand(info.repeats, acked_by)
        self._pending: set[Key] = set()
        self._finished = False
        self._changed = asyncio.Event()
        self._acking = asyncio.Lock()
        self._tasks: asyncio.TaskGroup

    @classmethod
    @asynccontextmanager
    async def connect(
        cls,
        broker: Broker,
        journal: Journal,
        runs: Runs,
        *,
        run: str,
        environment: str,
        model: str,
        name: str = "trainer",
        repeats: int = 1,
        window: int = 256,
        sampling: Sampling | None = None,
        limits: Limits | None = None,
        judge_model: str | None = None,
        files: bool = False,
        renew_after_s: float = RENEW_AFTER_S,
        shared: Shared | None = None,
    ) -> AsyncGenerator[Self]:
        """Begin the run, or go on with it: what was not acked comes again.

        `window` must hold at least one group. `files`: standing sinks write the rows too; then
        they, not `ack`, say what is durable. `judge_model` judges what is submitted from now on, in
        the place of the environment's. The broker and the stores stay the caller's.
        `shared`, for `update_policy`, is what the model's gateways share.

        Raises: RunConflict where the run is another's, JournalUnavailable, BrokerError.
        """
        if window < repeats:
            raise ValueError(f"a window of {window} never holds a group of {repeats}")
        known = await runs.progress(run)
        info = known.info if known else _new_run(run, environment, model, repeats)
        _check_same(info, environment, model, repeats)
        await runs.register(info)
        client = cls(
            broker,
            journal,
            runs,
            template=Task(
                run=run,
                generation=info.generation,
                task_index=0,
                repeat=0,
                environment=environment,
                model=model,
                row=b"",
                sampling=sampling or Sampling(),
                limits=limits or Limits(),
                judge_model=judge_model,
                audiences=(name, "sink") if files else (name,),
            ),
            info=info,
            next_index=-(-known.published // repeats) if known else 0,
            acked=[]
            if files
            else [await runs.committed(run, info.generation, r) for r in range(repeats)],
            window=window,
            renew_after_s=renew_after_s,
            shared=shared,
        )
        async with client._running():
            yield client

    @property
    def out(self) -> int:
        """Rollouts that were submitted or received, and are not acked."""
        return len(self._pending) + len(self._in_hand)

    async def update_policy(self, version: int, path: str, *, mode: PauseMode = "keep") -> None:
        """Return once every endpoint of the run's model samples with the weights in `path`.

        See producers/policy.py. Rollouts go on meanwhile; their rows say which versions they had.
        """
        if self._shared is None:
            raise ValueError("connect the client with `shared` to update policies")
        model = self._info.model
        await update_policy(self._broker, self._shared, model, version, path, mode=mode)

    async def submit(self, row: Mapping[str, Any] | str | Sequence[Mapping[str, Any]]) -> Submitted:
        """Publish one task `repeats` times, when the window has room for it.

        `row` is a dataset's row (producers/checks.py), or only its prompt: text, or a list of
        `{role, content}`. Once room is found the task is published even if the caller is cancelled.

        Raises: BadRow, JournalUnavailable (nothing was published), BrokerError.
        """
        packed = _packed_row(row)
        while self.out + self._info.repeats > self._window:
            self._changed.clear()
            await self._changed.wait()
        index = self._next_index
        self._next_index += 1
        keys = {(self._info.generation, index, r) for r in range(self._info.repeats)}
        self._pending |= keys
        try:
            # Claimed before it is used: after a crash no other task may get this index.
            await self._claim()
        except (JournalUnavailable, asyncio.CancelledError):
            self._pending -= keys
            self._changed.set()
            raise
        await asyncio.shield(self._tasks.create_task(self._publish(index, packed)))
        return Submitted(index, f"{self._info.run}/{index}")

    def finish(self) -> None:
        """No more will be submitted: the iterators end when all of it was handed over."""
        self._finished = True
        self._changed.set()

    async def rollouts(self) -> AsyncIterator[FinishedRollout]:
        """Each rollout as it comes, failed ones too. Iterated over twice, each comes once."""
        while await self._wait_for(lambda: self._in_hand.has_rollout):
            yield self._in_hand.next_rollout()

    async def groups(self) -> AsyncIterator[RolloutGroup]:
        """Each group when its last rollout has come; rollouts acked one by one are not in it."""
        while await self._wait_for(lambda: self._in_hand.has_group):
            yield self._in_hand.next_group()

    async def ack(
        self, *done: FinishedRollout | RolloutGroup | Iterable[FinishedRollout | RolloutGroup]
    ) -> None:
        """These were used: they never come again. Call it when the optimiser step is durable.

        Raises: JournalUnavailable: then all of it may be acked again.
        """
        async with self._acking:
            rollouts = {k: r for r in _flat(done) if (k := key_of(r)) in self._in_hand}
            if rollouts and not self._files:
                await self._mark(list(rollouts.values()))
            for key in rollouts:
                self._in_hand.let_go(key)
        self._changed.set()

    # What the broker brings

    @asynccontextmanager
    async def _running(self) -> AsyncGenerator[None]:
        queue = run_results_queue(self._name, self._info.run)
        task = self._template
        await self._broker.declare(queues_for(task.environment, task.run, task.audiences))
        await self._warn_of_others(queue.name)
        try:
            async with asyncio.TaskGroup() as self._tasks:
                # the window bounds what is in hand: who waits for a group waits behind no others
                async with self._broker.consume(queue.name, MAX_PREFETCH, self._receive):
                    keeping = self._tasks.create_task(self._keep_alive())
                    yield
                keeping.cancel()
        finally:
            self._in_hand.give_back()

    def _receive(self, delivery: Delivery) -> None:
        try:
            rollout = read_result(delivery.body, delivery.kind)
        except WireError as e:
            self._tasks.create_task(self._bury(delivery, str(e)))
            return
        if self._in_hand.take(rollout, delivery):
            self._pending.discard(key_of(rollout))
            if self._is_earlier(rollout) and self._in_hand.begins_group(rollout):
                self._tasks.create_task(self._complete(rollout))
            self._changed.set()

    def _is_earlier(self, rollout: FinishedRollout) -> bool:
        """Whether an earlier process submitted it."""
        same = rollout.generation == self._info.generation
        return not same or rollout.task_index < self._first_index

    async def _complete(self, rollout: FinishedRollout) -> None:
        """Publish an earlier process's missing siblings again: it may have died in between.

        Those that are running or done are recognised by the journal and cost nothing.
        """
        try:
            task = codec.read(Task, rollout.recorded.task)
        except WireError as e:
            extra = {"rollout": rollout.rollout_id, "error": str(e)}
            log.error("the rollout's task cannot be read", extra=extra)
            return
        for repeat in self._in_hand.missing(rollout):
            again = msgspec.structs.replace(
                task, repeat=repeat, attempt=1, lane="normal", enqueued_at=time.time()
            )
            await publish_patiently(self._broker, task_message(again))

    async def _bury(self, delivery: Delivery, reason: str) -> None:
        log.error("unreadable result", extra={"queue": delivery.queue, "reason": reason})
        await publish_patiently(self._broker, dead_letter(delivery, delivery.queue, reason))
        delivery.ack()

    # What goes out

    async def _publish(self, index: int, row: bytes) -> None:
        now = time.time()
        async with asyncio.TaskGroup() as group:
            for repeat in range(self._info.repeats):
                task = msgspec.structs.replace(
                    self._template, task_index=index, repeat=repeat, row=row, enqueued_at=now
                )
                group.create_task(publish_patiently(self._broker, task_message(task)))

    async def _claim(self) -> None:
        """Have the record say that all indices up to the next one are used."""
        count = self._next_index * self._info.repeats
        await self._runs.published(self._info.run, self._info.generation, count, self._finished)

    async def _mark(self, rollouts: Sequence[FinishedRollout]) -> None:
        """Marks first: a rollout that is marked is known as acked, whatever comes after."""
        totals = add_totals([self._totals, *map(totals_of, rollouts)])
        for generation in {rollout.generation for rollout in rollouts}:
            rows = [(r.task_index, r.repeat) for r in rollouts if r.generation == generation]
            await self._runs.mark(self._info.run, generation, self._shard, rows, totals)
        await self._journal.committed([rollout.journal_key for rollout in rollouts])
        self._totals = totals

    # What time brings

    async def _keep_alive(self) -> None:
        """Renew what is held for long, and the run's record should the journal have lost it."""
        while True:
            await asyncio.sleep(min(60.0, self._renew_after_s / 10))
            await self._renew()
            try:
                await self._runs.register(self._info)
                await self._claim()
            except JournalUnavailable as e:
                log.warning("run not registered", extra={"run": self._info.run, "error": str(e)})

    async def _renew(self) -> None:
        """Publish copies of what is held for long. They come back, and replace what is held."""
        oldest = time.monotonic() - self._renew_after_s
        for delivery in self._in_hand.held_since(oldest):
            await publish_patiently(self._broker, _copy(delivery))

    async def _wait_for(self, ready: Callable[[], bool]) -> bool:
        """Wait until there is something to hand over; False when there never will be."""
        while not ready():
            if self._finished and not self._pending:
                return False
            self._changed.clear()
            await self._changed.wait()
        return True

    async def _warn_of_others(self, queue: str) -> None:
        depth = await self._broker.depth(queue)
        if depth is not None and depth.consumers:
            log.warning(
                "another trainer of this name consumes the same run: groups will be torn apart",
                extra={"queue": queue, "consumers": depth.consumers},
            )


def _flat(
    done: Iterable[FinishedRollout | RolloutGroup | Iterable[FinishedRollout | RolloutGroup]],
) -> list[FinishedRollout]:
    found: list[FinishedRollout] = []
    for part in done:
        found += [part] if isinstance(part, FinishedRollout) else _flat(part)
    return found


def _packed_row(row: Mapping[str, Any] | str | Sequence[Mapping[str, Any]]) -> bytes:
    if isinstance(row, str):
        row = {"prompt": row}
    elif not isinstance(row, Mapping):
        row = {"messages": [dict(message) for message in row]}
    packed = json.dumps(dict(row), ensure_ascii=False, separators=(",", ":")).encode()
    check_row(parse(packed))
    return task_row(packed)


def _new_run(run: str, environment: str, model: str, repeats: int) -> RunInfo:
    return RunInfo(
        run=run,
        generation=uuid.uuid4().hex[:12],
        environment=environment,
        model=model,
        repeats=repeats,
        created_at=time.time(),
    )


def _check_same(info: RunInfo, environment: str, model: str, repeats: int) -> None:
    asked = {"environment": environment, "model": model, "repeats": repeats}
    for name, now in asked.items():
        before = getattr(info, name)
        if before != now:
            raise RunConflict(
                f"run {info.run!r} exists: its {name} is {before}, now it is {now}: "
                "use another run id"
            )


def _copy(delivery: Delivery) -> Outgoing:
    return Outgoing(
        exchange=RESULT.name,
        key=delivery.key,
        body=delivery.body,
        kind=delivery.kind,
        headers=own_headers(delivery),
    )


__all__ = ["RENEW_AFTER_S", "Submitted", "TrainerClient"]
