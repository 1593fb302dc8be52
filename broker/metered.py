"""Counting at the seams: a broker and a journal that behave as the ones they wrap, and count."""

import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import lru_cache
from time import monotonic
from typing import Any, Final, cast

from broker.base import Broker, Delivery, Header, OnDelivery, Outgoing, QueueDepth, Sender
from broker.errors import QueueFull, Unroutable, WarrenError
from broker.journal.base import Finished, Journal, Run
from broker.metrics import Metrics
from broker.series import Spread, Value
from broker.topology import QueueSpec

#: What a broker's refusal is counted as.
_REFUSALS: Final[Mapping[type[BaseException], str]] = {Unroutable: "unroutable", QueueFull: "full"}


def _outcome_of(error: BaseException) -> str:
    return _REFUSALS.get(type(error), "failed")


@lru_cache(1024)
def family(name: str) -> str:
    """`task` of `warren.q.v1.task.normal.calculator` or `warren.x.v1.task`."""
    words = name.split(".", 4)
    return words[3] if len(words) > 3 else "other"


class MeteredBroker:
    """See base.Broker."""

    def __init__(self, broker: Broker, metrics: Metrics) -> None:
        self._broker = broker
        self._metrics = metrics
        self._hints = metrics.hints.labels()
        self._sent: dict[str, _Sent] = {}

    @property
    def reconnects(self) -> int:
        return self._broker.reconnects

    @property
    def connected(self) -> bool:
        return self._broker.connected

    async def declare(self, queues: Sequence[QueueSpec]) -> None:
        await self._broker.declare(queues)

    async def publish(self, message: Outgoing) -> None:
        sent = self._sent.get(message.exchange) or self._sent_to(message.exchange)
        started = time.monotonic()
        try:
            await self._broker.publish(message)
            sent.confirmed.now += 1
        except BaseException as e:
            sent.outcome(_outcome_of(e)).now += 1
            raise
        finally:
            sent.seconds.observe(time.monotonic() - started)

    def post(self, message: Outgoing, sender: Sender) -> None:
        sent = self._sent.get(message.exchange) or self._sent_to(message.exchange)
        self._broker.post(message, _MeteredSender(sender, sent))

    def _sent_to(self, exchange: str) -> "_Sent":
        sent = self._sent[exchange] = _Sent(family(exchange), self._metrics)
        return sent

    def publish_hint(self, message: Outgoing) -> None:
        self._hints.now += 1
        self._broker.publish_hint(message)

    @asynccontextmanager
    async def consume(
        self, queue: str, prefetch: int | None, on_delivery: OnDelivery
    ) -> AsyncGenerator[None]:
        slots, counts = self._metrics.slots.labels(family(queue)), _Counts(queue, self._metrics)

        def counted(delivery: Delivery) -> None:
            (counts.again if delivery.redelivered else counts.fresh).now += 1
            counts.in_hand.now += 1
            on_delivery(MeteredDelivery(delivery, counts))

        def settled(delivery: Delivery) -> None:
            (counts.again if delivery.redelivered else counts.fresh).now += 1
            counts.acked.now += 1
            counts.acked_s.observe(0.0)
            on_delivery(delivery)

        taker = settled if prefetch is None else counted
        async with self._broker.consume(queue, prefetch, taker):
            slots.inc(prefetch or 0)
            try:
                yield
            finally:
                slots.dec(prefetch or 0)

    async def depth(self, queue: str) -> QueueDepth | None:
        return await self._broker.depth(queue)

    async def delete(self, queue: str) -> None:
        await self._broker.delete(queue)

    async def close(self) -> None:
        await self._broker.close()


class _Sent:
    """What is counted of the messages to one exchange, looked up once."""

    def __init__(self, family: str, metrics: Metrics) -> None:
        self.seconds = metrics.confirm_s.labels(family)
        self.confirmed = metrics.published.labels(family, "confirmed")
        self._family = family
        self._metrics = metrics

    def outcome(self, name: str) -> Value:
        """How those that were not confirmed ended."""
        return self._metrics.published.labels(self._family, name)


class _MeteredSender:
    """See base.Sender."""

    __slots__ = ("_sender", "_sent", "_since")

    def __init__(self, sender: Sender, sent: _Sent) -> None:
        self._sender = sender
        self._sent = sent
        self._since = time.monotonic()

    @property
    def wanted(self) -> bool:
        return self._sender.wanted

    def on_end(self, error: WarrenError | None) -> None:
        sent = self._sent
        if error is None:
            sent.confirmed.now += 1
        else:
            sent.outcome(_outcome_of(error)).now += 1
        sent.seconds.observe(time.monotonic() - self._since)
        self._sender.on_end(error)


class _Counts:
    """What is counted of one consumer's deliveries, looked up once."""

    def __init__(self, queue: str, metrics: Metrics) -> None:
        self._family = family(queue)
        self._metrics = metrics
        self.in_hand = metrics.in_hand.labels(self._family)
        self.fresh = metrics.delivered.labels(self._family, "no")
        self.again = metrics.delivered.labels(self._family, "yes")
        self.acked, self.acked_s = self._ends("ack")

    def settled(self, outcome: str, since: float) -> None:
        """One went, otherwise than nearly all do."""
        ended, held_s = self._ends(outcome)
        ended.now += 1
        held_s.observe(time.monotonic() - since)
        self.in_hand.now -= 1

    def _ends(self, outcome: str) -> tuple[Value, Spread]:
        labels = self._family, outcome
        return self._metrics.settled.labels(*labels), self._metrics.held_s.labels(*labels)


class MeteredDelivery:
    """See base.Delivery."""

    __slots__ = ("_counts", "_delivery", "_since", "body")

    def __init__(self, delivery: Delivery, counts: _Counts) -> None:
        self.body = delivery.body
        self._delivery = delivery
        self._counts = counts
        self._since: float | None = time.monotonic()

    @property
    def kind(self) -> str:
        return self._delivery.kind

    @property
    def headers(self) -> Mapping[str, Header]:
        return self._delivery.headers

    @property
    def queue(self) -> str:
        return self._delivery.queue

    @property
    def exchange(self) -> str:
        return self._delivery.exchange

    @property
    def key(self) -> str:
        return self._delivery.key

    @property
    def redelivered(self) -> bool:
        return self._delivery.redelivered

    @property
    def live(self) -> bool:
        return self._delivery.live

    def ack(self) -> None:
        delivery, since = self._delivery, self._since
        if since is not None:
            self._since, counts = None, self._counts
            if delivery.live:
                counts.acked.now += 1
                counts.acked_s.observe(time.monotonic() - since)
                counts.in_hand.now -= 1
            else:
                counts.settled("stale", since)
        delivery.ack()

    def give_back(self) -> None:
        delivery, since = self._delivery, self._since
        if since is not None:
            self._since = None
            self._counts.settled("given_back" if delivery.live else "stale", since)
        delivery.give_back()


#: Operations whose answer is counted too: they tell replays, duplicates, mismatches, losses.
_ANSWERS: Final = frozenset({"take", "begin", "finish", "keep_first"})


def metered_journal(journal: Journal, metrics: Metrics) -> Journal:
    """The same journal, each of its operations timed and counted."""
    return cast(Journal, _MeteredJournal(journal, metrics))


class _MeteredJournal:
    def __init__(self, journal: Journal, metrics: Metrics) -> None:
        self._journal = journal
        self._metrics = metrics

    async def listen(
        self, inbox: str, hear: Callable[[bytes], None], missed: Callable[[], None]
    ) -> None:
        """See listening.Tells: no operation, but what comes is counted."""
        heard = self._metrics.heard.labels()

        def counted(reply: bytes) -> None:
            heard.now += 1
            hear(reply)

        await self._journal.listen(inbox, counted, missed)

    def __getattr__(self, op: str) -> Any:
        """Made once per operation, then found on the instance."""
        counted = _counted(op, getattr(self._journal, op), self._metrics)
        setattr(self, op, counted)
        return counted


def _counted(
    op: str, call: Callable[..., Awaitable[Any]], metrics: Metrics
) -> Callable[..., Awaitable[Any]]:
    observe, errors = metrics.journal_s.labels(op).observe, metrics.journal_errors.labels(op)
    told, replayed = metrics.told.labels(), metrics.replayed_calls.labels()
    tells, answers = op in _ANSWERS, dict[type[Any], Value]()

    def answered(kind: type[Any]) -> Value:
        answers[kind] = metrics.journal_results.labels(op, kind.__name__.lower())
        return answers[kind]

    async def counted(*args: Any, **kwargs: Any) -> Any:
        started = monotonic()
        try:
            answer = await call(*args, **kwargs)
        except WarrenError:
            errors.inc()
            raise
        finally:
            observe(monotonic() - started)
        if tells:
            kind = type(answer)
            (answers.get(kind) or answered(kind)).now += 1
            if kind is Finished:
                told.now += answer.told
            elif kind is Run:
                replayed.now += len(answer.results)
        return answer

    return counted
