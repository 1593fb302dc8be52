"""The core loop that every worker kind, sinks included, runs on: take, handle, settle exactly once.

    async with consume(queue): each delivery becomes a task -> handle(delivery) -> Outcome -> settle

Prefetch is the concurrency limit. A delivery is settled after its effect is durable, never before.
Stopping is crashing, politely: stop consuming, let what is nearly done end within a grace, cancel
the rest, and give every unsettled delivery back; others go on with it at once.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Final

import msgspec

from broker.base import Broker, Delivery, Outgoing
from broker.errors import BrokerError, JournalUnavailable, QueueFull, WireError
from broker.retries import STORE_AWAY, UNEXPECTED, PutOff, Wait, decide, rung
from broker.topology import DEAD, QueueSpec, Stage, ladder_exchange

log = logging.getLogger(__name__)

#: Header that counts how often a message went over the ladder after an unexpected error.
FAILURES_HEADER: Final = "warren-failures"
REASON_HEADER: Final = "warren-reason"
QUEUE_HEADER: Final = "warren-queue"
_CHANCE: Final = random.Random()


class Ack(msgspec.Struct, frozen=True):
    """Done, and what follows is durable."""


class GiveBack(msgspec.Struct, frozen=True):
    """Not done: for somebody else, at once."""


class Later(msgspec.Struct, frozen=True):
    """Not done: back in the same stage after a wait that costs nobody a slot."""

    delay_s: float
    body: bytes | None = None
    """The message to come back with; None for the same."""
    failures: int = 0
    placed: Callable[[], Awaitable[None]] | None = None
    """Done once the broker has confirmed the message that waits."""


class Dead(msgspec.Struct, frozen=True):
    """Can never be done: to the dead letters, with the reason."""

    reason: str


Outcome = Ack | GiveBack | Later | Dead
Handler = Callable[[Delivery], Awaitable[Outcome]]


@dataclass(frozen=True, slots=True)
class Source:
    """One queue that a worker consumes, and what it does with what comes."""

    queue: QueueSpec
    prefetch: int
    handle: Handler
    stage: Stage | None
    """Whose ladder its messages wait on; None for queues whose messages never wait."""


async def serve(
    broker: Broker,
    sources: Sequence[Source],
    *,
    stop: asyncio.Event,
    serving: asyncio.Event | None = None,
    grace_s: float = 2.0,
) -> None:
    """Consume until `stop`, then end within about `grace_s`. The caller closes the broker.

    `serving` is set once everything is consumed (readiness).

    Raises BrokerError when the broker is gone for good: crash, and let a supervisor restart us.
    """
    await broker.declare([source.queue for source in sources])
    settling = _Settling(broker)
    async with asyncio.TaskGroup() as group:
        group.create_task(settling.fail())
        group.create_task(settling.keep())
        async with AsyncExitStack() as consuming:
            for source in sources:
                await consuming.enter_async_context(
                    broker.consume(source.queue.name, source.prefetch, settling.starter(source))
                )
            if serving is not None:
                serving.set()
            await stop.wait()
        if settling.running:
            await asyncio.wait(settling.running, timeout=grace_s)
        settling.over.set_result(None)


class _Settling:
    """The deliveries in hand, each settled in a task of its own; none outlives `keep`.

    Does what a TaskGroup does, where tasks are many and short, at half its cost.
    """

    def __init__(self, broker: Broker) -> None:
        self.running: set[asyncio.Task[None]] = set()
        self._broker = broker
        self._loop = asyncio.get_running_loop()
        self._failed: asyncio.Future[None] = self._loop.create_future()
        self.over: asyncio.Future[None] = self._loop.create_future()

    async def keep(self) -> None:
        """Until it is over, or cancelled; when this returns none runs any more."""
        try:
            await self.over
        finally:
            await self._end_all()

    async def _end_all(self) -> None:
        """What comes meanwhile too, and however often we are cancelled meanwhile."""
        cancelled: asyncio.CancelledError | None = None
        while self.running:
            for task in self.running:
                if not task.cancelling():  # once: what it does at its end is not to be cut
                    task.cancel()
            try:
                await asyncio.wait(self.running)
            except asyncio.CancelledError as e:
                cancelled = e
        if not self._failed.done():
            self._failed.set_result(None)
        if cancelled is not None:
            raise cancelled

    async def fail(self) -> None:
        """Raise what the first one raises; return after `keep`."""
        await self._failed

    def starter(self, source: Source) -> Callable[[Delivery], None]:
        """Begins to settle what comes from this source."""

        def start(delivery: Delivery) -> None:
            task = self._loop.create_task(settle(self._broker, source, delivery))
            self.running.add(task)
            task.add_done_callback(self._ended)

        return start

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.running.discard(task)
        if task.cancelled() or (error := task.exception()) is None or self._failed.done():
            return
        self._failed.set_exception(error)


async def settle(broker: Broker, source: Source, delivery: Delivery) -> None:
    """Handle one delivery and settle it exactly once, whatever happens. The one broad `except`."""
    if not delivery.live:
        return  # its channel died before we began: somebody else has it by now
    try:
        try:
            outcome = await source.handle(delivery)
        except WireError as e:
            outcome = Dead(str(e))
        except JournalUnavailable as e:
            log.warning("journal unavailable", extra={"queue": source.queue.name, "error": str(e)})
            outcome = await _after_silence()
        except BrokerError:
            raise
        except Exception as e:
            log.exception("unexpected error", extra={"queue": source.queue.name})
            outcome = _after_failure(source, delivery, e)
        if isinstance(outcome, Ack):  # as nearly all end
            delivery.ack()
        else:
            await _apply(broker, source, delivery, outcome)
    except BaseException:
        delivery.give_back()
        raise


async def _after_silence() -> Outcome:
    """The store is away: back to the queue, but not so fast that the queue spins."""
    match decide(STORE_AWAY, tries=1, chance=_CHANCE):
        case Wait(delay_s):
            await asyncio.sleep(delay_s)
    return GiveBack()


def _after_failure(source: Source, delivery: Delivery, error: Exception) -> Outcome:
    failures = int(delivery.headers.get(FAILURES_HEADER, 0)) + 1
    match decide(UNEXPECTED, tries=failures, chance=_CHANCE):
        case PutOff(delay_s) if source.stage is not None:
            return Later(delay_s, failures=failures)
    return Dead(f"{type(error).__name__}: {error} ({failures} times)")


async def _apply(
    broker: Broker, source: Source, delivery: Delivery, outcome: GiveBack | Later | Dead
) -> None:
    match outcome:
        case GiveBack():
            delivery.give_back()
        case Later():
            await publish_patiently(broker, _on_ladder(source, delivery, outcome))
            delivery.ack()
            if outcome.placed is not None:
                await outcome.placed()
        case Dead(reason):
            log.error("dead letter", extra={"queue": source.queue.name, "reason": reason})
            await publish_patiently(broker, dead_letter(delivery, source.queue.name, reason))
            delivery.ack()


def _on_ladder(source: Source, delivery: Delivery, later: Later) -> Outgoing:
    if source.stage is None:
        raise ValueError(f"messages of {source.queue.name} cannot wait on a ladder")
    failures = (
        int(delivery.headers.get(FAILURES_HEADER, 0)) if not later.failures else later.failures
    )
    return Outgoing(
        exchange=ladder_exchange(source.stage, rung(later.delay_s)).name,
        key=delivery.key,
        body=delivery.body if later.body is None else later.body,
        kind=delivery.kind,
        headers={**own_headers(delivery), FAILURES_HEADER: failures},
    )


def dead_letter(delivery: Delivery, queue: str, reason: str) -> Outgoing:
    """The message as it came, with where it died and why."""
    return Outgoing(
        exchange=DEAD.name,
        key=delivery.key or "none",
        body=delivery.body,
        kind=delivery.kind,
        headers={**own_headers(delivery), REASON_HEADER: reason[:2000], QUEUE_HEADER: queue},
    )


def own_headers(delivery: Delivery) -> dict[str, str | int]:
    """Only our own headers: RabbitMQ's `x-death` and kin must not be published again."""
    return {k: v for k, v in delivery.headers.items() if k.startswith("warren-")}


async def publish_patiently(
    broker: Broker, message: Outgoing, *, after: BrokerError | None = None
) -> None:
    """Publish; while a bounded queue refuses, wait and try again: that is back-pressure.

    `after`: how it was refused before.
    """
    delay_s = 0.05
    refusal = after
    while True:
        if isinstance(refusal, QueueFull):
            await asyncio.sleep(random.uniform(0.5, 1.0) * delay_s)
            delay_s = min(delay_s * 2, 2.0)
        try:
            return await broker.publish(message)
        except QueueFull as e:
            refusal = e


__all__ = [
    "FAILURES_HEADER",
    "QUEUE_HEADER",
    "REASON_HEADER",
    "Ack",
    "Dead",
    "GiveBack",
    "Handler",
    "Later",
    "Outcome",
    "Source",
    "dead_letter",
    "own_headers",
    "publish_patiently",
    "serve",
    "settle",
]
