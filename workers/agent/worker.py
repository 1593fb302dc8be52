"""One task in an agent worker's hands: hold it, take it, run it, leave exactly one trajectory.

The delivery stays unacknowledged while the rollout runs, so that the broker redelivers the moment
this process dies. Order at the end: trajectory published (confirmed), journal ENDED, ack. Nothing
here may lose a task: every way out either acks after the trajectory is safe, hands the task on
(confirmed, then ack), or gives it back.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import msgspec

from broker import codec
from broker.base import AGAIN_HEADER, MAX_PREFETCH, Broker, Delivery, Outgoing
from broker.crashpoints import crash_at
from broker.deadlines import Deadlines
from broker.errors import JournalUnavailable, TooLarge
from broker.journal.base import Committed, Journal, Owned, Run
from broker.journal.patience import patiently
from broker.journal.runs import Runs
from broker.messages import Failure, Task, Trajectory, waited_too_long
from broker.parting import parting
from broker.serve import Ack, GiveBack, Outcome, Source, publish_patiently
from broker.shared.base import Shared
from broker.shared.memory import MemoryShared
from broker.topology import (
    HELD,
    LANES,
    TASK,
    VERIFY,
    Lane,
    held_queue,
    ladder_queues,
    model_queue,
    task_key,
    task_queue,
    tool_queue,
    verify_queue,
)
from workers.agent.budgets import Budgets
from workers.agent.calls import call_lane
from workers.agent.rollout import Watch, failed_trajectory, run_rollout, too_large
from workers.agent.slots import Slots
from workers.inbox import Inbox
from workers.owner import Owner, Replaced
from workers.sessions import MAX_ATTEMPTS, SessionGone
from workers.spec import EnvironmentSpec

log = logging.getLogger(__name__)

#: RabbitMQ closes the channel of a delivery unacknowledged for 30 min; renewal comes well before.
RENEW_AFTER_S: Final = 600.0
#: Takes without progress after which a rollout is suspected of killing its workers.
SUSPECT_TAKES: Final = 3
#: What a verdict may add to the trajectory when both travel as one result.
_RESULT_BYTES: Final = 64 * 1024
#: One task in hand per so many slots waits for the next that is free. Without any a slot waits for
#: its last rollout's trajectory to be confirmed, then for RabbitMQ: 2 to 4 % of the time where
#: rollouts take 2 s. Where slots are few nobody is kept waiting at a busy worker.
_SLOTS_PER_NEXT: Final = 32
#: How often running rollouts are checked against cancelled runs.
_CANCEL_CHECK_S: Final = 2.0
#: Times that a suspect may begin to run alone before it becomes a failed row.
MAX_STRIKES: Final = 3


@dataclass(slots=True, eq=False)
class _Running:
    """A rollout in our hands, and the delivery that it is held by at present."""

    task: Task
    delivery: Delivery
    watch: Watch
    done: "asyncio.Future[Outcome] | None" = None
    """Where a second delivery waits for its end."""
    held_since: float = field(default_factory=time.monotonic)
    copies_due: int = 0
    """Renewed copies that are on their way to us."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings:
    """Numbers of one agent worker."""

    slots: int = 64
    renew_after_s: float = RENEW_AFTER_S
    lanes: Sequence[Lane] = LANES


class AgentWorker:
    """Runs the rollouts of the environments it was given."""

    def __init__(
        self,
        broker: Broker,
        journal: Journal,
        runs: Runs,
        inbox: Inbox,
        environments: Mapping[str, EnvironmentSpec],
        settings: AgentSettings | None = None,
        shared: Shared | None = None,
    ) -> None:
        self._broker = broker
        self._journal = journal
        self._runs = runs
        self._budgets = Budgets(runs, shared or MemoryShared())
        self._inbox = inbox
        self._environments = environments
        self._settings = settings or AgentSettings()
        self._deadlines = Deadlines()
        self._slots = Slots(self._settings.slots)
        self._running: dict[str, _Running] = {}
        self._late_copies: dict[str, int] = {}
        self._declared: set[tuple[str, str, str]] = set()
        self._declaring = asyncio.Lock()

    @property
    def running(self) -> int:
        """Rollouts that hold a slot."""
        return self._slots.used

    def sources(self) -> list[Source]:
        """What to serve: each environment's tasks per lane, and our own held copies."""
        slots = self._settings.slots
        sources = []
        for name in self._environments:
            for lane in self._settings.lanes:
                prefetch = min(slots + slots // _SLOTS_PER_NEXT, MAX_PREFETCH)
                sources.append(Source(task_queue(lane, name), prefetch, self.handle, "task"))
            held = held_queue(self._inbox.worker_id, name)
            sources.append(Source(held, slots * 4 + 16, self.handle, "task"))
        return sources

    async def handle(self, delivery: Delivery) -> Outcome:
        """Run, adopt or hand on one task."""
        task = codec.decode(Task, delivery.body, delivery.kind)
        key = task.journal_key
        if self._late_copies.get(key):
            self._forget_copy(key)
            return Ack()  # a renewed copy of what has ended meanwhile
        running = self._running.get(key)
        if running is not None:
            return await self._adopt(running, delivery)
        spec = self._environments.get(task.environment)
        if spec is None:
            return GiveBack()
        return await self._hold(task, spec, delivery)

    async def _adopt(self, running: _Running, delivery: Delivery) -> Outcome:
        """A second delivery of what runs here: hold it if the first is void, else drop it."""
        if running.copies_due:
            running.copies_due -= 1
        if running.delivery.live:
            return Ack()
        running.delivery = delivery
        running.held_since = time.monotonic()
        if running.done is None:
            running.done = asyncio.get_running_loop().create_future()
        return await asyncio.shield(running.done)

    async def _hold(self, task: Task, spec: EnvironmentSpec, delivery: Delivery) -> Outcome:
        key = task.journal_key
        running = self._running[key] = _Running(task, delivery, Watch(self._deadlines))
        outcome: Outcome = GiveBack()
        try:
            await self._slots.acquire(task.lane)
            try:
                outcome = await self._run(task, spec, running)
            finally:
                self._slots.release()
            return outcome
        finally:
            del self._running[key]
            if running.copies_due and isinstance(outcome, Ack):
                self._late_copies[key] = running.copies_due
            if running.done is not None:
                running.done.set_result(outcome)

    def _forget_copy(self, key: str) -> None:
        self._late_copies[key] -= 1
        if not self._late_copies[key]:
            del self._late_copies[key]

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[None, None]:
        """Renew what is held, end what is cancelled or beyond budget while the context is open."""
        async with asyncio.TaskGroup() as group:
            chores = [group.create_task(self._renewals()), group.create_task(self._cancellations())]
            yield
            for chore in chores:
                chore.cancel()

    async def _renewals(self) -> None:
        """Before the broker loses patience, move deliveries to our own held queue."""
        renew_after_s = self._settings.renew_after_s
        while True:
            await asyncio.sleep(renew_after_s / 10)
            due = time.monotonic() - renew_after_s
            async with asyncio.TaskGroup() as group:
                for running in list(self._running.values()):
                    if running.held_since < due and running.delivery.live:
                        group.create_task(self._renew(running))

    async def _renew(self, running: _Running) -> None:
        held = running.delivery
        running.copies_due += 1
        await publish_patiently(self._broker, _held_copy(running.task, self._inbox.worker_id))
        held.ack()

    async def _cancellations(self) -> None:
        while True:
            await asyncio.sleep(_CANCEL_CHECK_S)
            for run in {running.task.run for running in self._running.values()}:
                if await self._is_cancelled(run):
                    for running in list(self._running.values()):
                        if running.task.run == run:
                            running.watch.cancel()
            for running in list(self._running.values()):
                if (why := await self._budgets.exceeded(running.task)) is not None:
                    running.watch.spent(why)

    async def _is_cancelled(self, run: str) -> bool:
        try:
            return await self._runs.is_cancelled(run)
        except JournalUnavailable:
            return False  # asked again soon

    async def _run(self, task: Task, spec: EnvironmentSpec, running: _Running) -> Outcome:
        """Take the rollout and run it, again if another attempt has replaced this one."""
        while True:
            taken = await self._inbox.take(task.journal_key)
            crash_at("agent.after_take")
            match taken:
                case Committed():
                    return Ack()
                case Owned(inbox):
                    return await self._hand_to(inbox, task)
                case Run() if self._is_for_suspects(taken, task):
                    return await self._hand_to_suspects(task, taken.epoch)
            try:
                return await self._run_taken(task, spec, taken, running)
            except Replaced:
                log.info("rollout replaced", extra={"rollout": task.journal_key})

    def _is_for_suspects(self, run: Run, task: Task) -> bool:
        """Whether it may have killed its workers, and would run beside others here.

        A suspect's held copy comes back through the `resume` lane: it is still a suspect.
        """
        if run.ended:
            return False
        if task.lane == "suspect":
            return "suspect" not in self._settings.lanes
        return run.idle_takes >= SUSPECT_TAKES

    async def _hand_to(self, inbox: str, task: Task) -> Outcome:
        """Another living worker runs it: give it this delivery, it may have lost its own."""
        await publish_patiently(self._broker, _held_copy(task, inbox))
        return Ack()

    async def _hand_to_suspects(self, task: Task, epoch: str) -> Outcome:
        """It may kill its workers: let it run alone, where only it is at risk.

        Released first: else whoever takes it there finds a living owner, and gives it back to us.
        """
        log.warning("rollout suspected", extra={"rollout": task.journal_key})
        await self._journal.release(task.journal_key, epoch, self._inbox.worker_id)
        await self._broker.declare([task_queue("suspect", task.environment)])
        moved = msgspec.structs.replace(task, lane="suspect")
        await publish_patiently(
            self._broker,
            Outgoing(
                exchange=TASK.name,
                key=task_key("suspect", task.environment),
                body=codec.encode(moved),
                kind=codec.kind_of(Task),
            ),
        )
        return Ack()

    async def _run_taken(
        self, task: Task, spec: EnvironmentSpec, run: Run, running: _Running
    ) -> Outcome:
        key = task.journal_key
        try:
            with self._inbox.own(key, run, stateful=spec.state is not None) as owner:
                await self._declare_for(task)
                refusal = await self._refusal(task, run)
                if refusal is None:
                    trajectory = await self._attempt(owner, task, spec, running.watch)
                else:
                    trajectory = failed_trajectory(owner, task, refusal)
                await self._publish(task, trajectory, again=run.begun_before)
                crash_at("agent.after_trajectory")
                await patiently(lambda: self._journal.ended(key, run.epoch))
                crash_at("agent.after_ended")
        except asyncio.CancelledError:
            await self._let_go(key, run)
            raise
        return Ack()

    async def _attempt(
        self, owner: Owner, task: Task, spec: EnvironmentSpec, watch: Watch
    ) -> Trajectory:
        """Run it; where its session is lost a new attempt begins, a few times."""
        try:
            return await run_rollout(owner, task, spec, watch)
        except SessionGone as e:
            if owner.run.attempt >= MAX_ATTEMPTS:
                message = f"its session was lost in {MAX_ATTEMPTS} attempts: {e}"
                return failed_trajectory(owner, task, Failure(kind="infra", message=message))
            log.warning("session lost, starting again", extra={"rollout": owner.key})
            await self._journal.restart(owner.key, owner.run.epoch)
            raise Replaced(owner.key) from e

    async def _refusal(self, task: Task, run: Run) -> Failure | None:
        """Why this rollout must not run at all."""
        if await self._is_cancelled(task.run):
            return Failure(kind="cancelled", message="the run was cancelled")
        if not run.ended and run.attempt == 1 and run.first_taken_at > task.begin_by:
            return waited_too_long("task", task.limits.waits.task_s)
        if not run.ended and (why := await self._budgets.exceeded(task)) is not None:
            return why
        if task.lane != "suspect" or run.ended:
            return None
        strikes = await self._journal.strike(task.journal_key, run.epoch)
        if strikes <= MAX_STRIKES:
            return None
        return Failure(
            kind="agent", message=f"ended its worker process {strikes - 1} times running alone"
        )

    async def _publish(self, task: Task, trajectory: Trajectory, *, again: bool) -> None:
        """`again`: whoever had it before may have published it too, and died before he said so."""
        try:
            body = codec.encode(trajectory, spare_bytes=_RESULT_BYTES)
        except TooLarge as e:
            body = codec.encode(too_large(trajectory, e))
        await publish_patiently(
            self._broker,
            Outgoing(
                exchange=VERIFY.name,
                key=task.environment,
                body=body,
                kind=codec.kind_of(Trajectory),
                headers={AGAIN_HEADER: 1} if again else {},
                expires_s=task.limits.waits.verify_s,
            ),
        )

    async def _let_go(self, key: str, run: Run) -> None:
        """Stopping: whoever gets the task next need not ask whether we live."""
        if not await parting(self._journal.release(key, run.epoch, self._inbox.worker_id)):
            log.warning("rollout not released", extra={"rollout": key})

    async def _declare_for(self, task: Task) -> None:
        """Everything that this task's messages go to, once per worker."""
        known = (task.environment, task.lane, task.model)
        if known in self._declared:
            return
        async with self._declaring:  # the first tasks come all at once
            if known in self._declared:
                return
            await self._broker.declare(
                [
                    tool_queue(task.environment),
                    verify_queue(task.environment),
                    model_queue(call_lane(task), task.model),
                    *ladder_queues("verify"),
                ]
            )
            self._declared.add(known)


def _held_copy(task: Task, worker_id: str) -> Outgoing:
    return Outgoing(
        exchange=HELD.name,
        key=f"{worker_id}.{task.environment}",
        body=codec.encode(task),
        kind=codec.kind_of(Task),
    )
