"""How an owner makes calls: publish, wait for the reply, trust the journal.

An agent worker owns rollouts, a verifier worker owns verifications; both call models and tools the
same way. Replies are hints that come to the worker's inbox (inbox.py); a sweep finds the ones that
were lost, publishes again what the broker may have lost, and notices when another worker took over.

The broker keeps calls in memory only: one that is restarted has forgotten them, and its owners see
their connection break. So each call knows how many reconnects there were when it was published,
and one that is older than the newest is looked at until its result is there: while an executor
that lives has it in hand, it is left to that one; where nobody has it, it is published again. So is
one that nobody has though its queue is empty: queues are purged and deleted, nodes of clusters die.
"""

import asyncio
import functools
import logging
import math
import time
from collections.abc import Callable, Container, Mapping
from typing import Final

import msgspec

from broker import codec
from broker.base import Broker, Outgoing
from broker.crashpoints import crash_at
from broker.deadlines import Deadlines
from broker.errors import BrokerClosed, BrokerError, BrokerLost, Unroutable
from broker.journal.base import (
    EXECUTOR_LEASE_S,
    EXECUTOR_RENEW_S,
    CallRef,
    Finished,
    Gone,
    Journal,
    Lost,
    Overview,
    Run,
    Stored,
    Upload,
)
from broker.journal.patience import patiently
from broker.messages import Call, Reply, ReplyKind
from broker.names import new_id
from broker.serve import publish_patiently
from broker.topology import QueueSpec, call_queue

log = logging.getLogger(__name__)

#: After a journal was lost, calls that nobody has are published again this much later. What was
#: being executed has lost its claim too, and would run twice if it took longer than this.
LOST_GRACE_S: Final = 30.0
#: Calls that the broker may have lost and an executor has are looked at this often: it may die.
WATCH_S: Final = EXECUTOR_LEASE_S
#: Where none has it, once more after this long: what was on its way has arrived by then, and
#: leases that ran out while the journal was away are renewed.
DOUBT_S: Final = 2 * EXECUTOR_RENEW_S
#: A call that vanished from its queue is not taken for vanished again for so long: whoever has it
#: may be held up before it has begun.
VANISHED_S: Final = 60.0


class NotBegun(Exception):
    """Nobody has begun on a call within its queue's deadline."""


class Replaced(Exception):
    """Another worker or attempt owns this rollout by now: stop, and take it again to see."""


class Nondeterministic(Exception):
    """The agent asked something else at a path than it did before: its replay can't be trusted."""

    def __init__(self, path: str) -> None:
        super().__init__(
            f"call {path} differs from the one that was made there before. Agent code must be "
            f"deterministic given its results: take time, randomness and ids from ctx"
        )
        self.path = path


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """One call to make: what, where to, and what it becomes when nobody answers in time."""

    path: str
    request_hash: bytes
    exchange: str
    key: str
    message: Callable[..., Call]
    """Makes the message from the fields that `Call` has."""
    fields: Mapping[str, object]
    """Fields of `Call` that the owner does not know: run, environment, lane."""
    timeout_s: float
    on_timeout: Callable[[], bytes]
    """The packed result that says so."""
    wait_s: float | None = None
    """How long it may wait until somebody begins on it; None: until its deadline."""
    on_wait: Callable[[], bytes] | None = None
    """The packed result that says that nobody did."""
    queue: QueueSpec | None = None
    """Where it goes, if nobody else is sure to have declared that: models that code names."""


class _Waiting:
    """A call that is out."""

    def __init__(self, ask: Ask) -> None:
        self.ask = ask
        self.deadline = time.time() + ask.timeout_s
        self.begin_by = time.time() + (math.inf if ask.wait_s is None else ask.wait_s)
        """Unix seconds; infinite once it is known that somebody has begun."""
        self.lost_at: float | None = None
        """Loop time at which the journal that knew of this call was lost."""
        self.published_in: float = math.inf
        """How many reconnects there had been when the broker had it; infinite until it has."""
        self.look_at = 0.0
        """Loop time before which nobody need look what became of it."""
        self.missed = False
        """Whether the broker may have lost it, and nobody had it when we looked last."""
        self.queue = call_queue(ask.exchange, ask.key)
        self.trusted_until = 0.0
        """Loop time before which it says nothing of this call that its queue is empty."""
        self.reply: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()

    def may_be_lost(self, reconnects: int, at: float) -> bool:
        """Whether, at this loop time, it is to be published again if nobody has it.

        Once its journal was lost, not before whoever executed it has had time to finish.
        """
        if self.lost_at is None:
            return self.missed or self.published_in < reconnects
        return at - self.lost_at >= LOST_GRACE_S

    def may_have_vanished(self, empty: Container[str], at: float) -> bool:
        """Whether, at this loop time, it should wait in one of these queues, which are empty."""
        return self.queue in empty and self.published_in < math.inf and self.trusted_until <= at

    def left_s(self) -> float:
        """Seconds until its deadline."""
        return max(self.deadline - time.time(), 0.0)

    def hear(self, reply: Reply) -> None:
        if not self.reply.done():
            self.reply.set_result(reply)

    def fail(self, error: Exception) -> None:
        if not self.reply.done():
            self.reply.set_exception(error)

    async def next_reply(self) -> Reply:
        """Wait for one; a later reply gets a new future."""
        reply = await self.reply
        self.reply = asyncio.get_running_loop().create_future()
        return reply


class Owner:
    """One rollout or verification in this worker's hands."""

    def __init__(
        self,
        broker: Broker,
        journal: Journal,
        deadlines: Deadlines,
        worker_id: str,
        key: str,
        run: Run,
        stateful: bool,
    ) -> None:
        self.key = key
        self.run = run
        self.results: dict[str, Stored] = dict(run.results)
        self.replayed = 0
        self.broker = broker
        self._broker = broker
        self._journal = journal
        self._deadlines = deadlines
        self._worker_id = worker_id
        self._stateful = stateful
        self._waiting: dict[str, _Waiting] = {}
        self._declared: set[str] = set()

    async def call(self, ask: Ask) -> bytes:
        """The call's packed result: from the journal if it was made before, else make it.

        Raises: Replaced, Nondeterministic, BrokerError, JournalUnavailable.
        """
        stored = self.results.get(ask.path)
        if stored is None:
            result = await self._make(ask)
            self.results[ask.path] = Stored(ask.request_hash, result)
            return result
        if stored.request_hash != ask.request_hash:
            raise Nondeterministic(ask.path)
        self.replayed += 1
        return stored.result

    async def _make(self, ask: Ask) -> bytes:
        waiting = self._waiting[ask.path] = _Waiting(ask)
        try:
            with self._deadlines.within(waiting.left_s()):
                await self._publish(waiting)
                crash_at("owner.after_publish")
                answer = await self._answer(waiting)
            crash_at("owner.after_reply")
            return answer
        except TimeoutError:
            return await self._give_up(waiting, ask.on_timeout())
        except NotBegun:
            return await self._give_up(waiting, (ask.on_wait or ask.on_timeout)())
        finally:
            del self._waiting[ask.path]

    async def _publish(self, waiting: _Waiting) -> None:
        ask = waiting.ask
        call = ask.message(
            rollout=self.key,
            epoch=self.run.epoch,
            path=ask.path,
            carrier=new_id(),
            request_hash=ask.request_hash,
            held=len(self.results),
            reply_to=self._worker_id,
            deadline=waiting.deadline,
            **ask.fields,
        )
        if ask.queue is not None and ask.queue.name not in self._declared:
            await self._broker.declare([ask.queue])
            self._declared.add(ask.queue.name)
        await publish_patiently(
            self._broker,
            Outgoing(
                exchange=ask.exchange,
                key=ask.key,
                body=codec.encode(call),
                kind=codec.kind_of(type(call)),
                persistent=False,
            ),
        )
        waiting.published_in = self._broker.reconnects

    async def _answer(self, waiting: _Waiting) -> bytes:
        while True:
            reply = await waiting.next_reply()
            match reply.kind:
                case "result" if reply.result:
                    return reply.result
                case "result":  # too large for a hint
                    read = functools.partial(
                        self._journal.result, self.key, self.run.epoch, reply.path
                    )
                    if result := await patiently(read):
                        return result
                    await patiently(self.sweep)  # it has gone: why?
                case "journal_lost":
                    await self._upload()
                case "gone":
                    raise Replaced(self.key)
                case "mismatch":
                    raise Nondeterministic(reply.path)

    async def _give_up(self, waiting: _Waiting, given_up: bytes) -> bytes:
        """A deadline has passed: record that as the result, unless a real one was first."""
        ref = CallRef(
            rollout=self.key,
            epoch=self.run.epoch,
            path=waiting.ask.path,
            carrier=new_id(),
            request_hash=waiting.ask.request_hash,
            held=len(self.results),
        )
        while True:
            match await patiently(lambda: self._journal.finish(ref, given_up)):
                case Finished(result):
                    return result
                case Gone():
                    raise Replaced(self.key)
                case Lost():
                    await self._upload()

    async def _upload(self) -> None:
        """Restore a journal that lost this rollout; state only the journal had is gone with it."""
        if self._stateful:
            raise Replaced(self.key)
        log.warning("journal lost, uploading", extra={"rollout": self.key})
        upload = Upload(
            rollout=self.key,
            epoch=self.run.epoch,
            attempt=self.run.attempt,
            inbox=self._worker_id,
            results=dict(self.results),
            first_taken_at=self.run.first_taken_at,
            opened={path: each.ask.request_hash for path, each in self._waiting.items()},
        )
        if not await patiently(lambda: self._journal.upload(upload)):
            raise Replaced(self.key)
        for waiting in self._waiting.values():
            waiting.lost_at, waiting.missed = asyncio.get_running_loop().time(), False

    def hear(self, reply: Reply) -> None:
        """A reply for this rollout arrived; one that nobody waits for is only late."""
        waiting = self._waiting.get(reply.path)
        if waiting is not None and reply.epoch == self.run.epoch:
            waiting.hear(reply)

    def queues(self) -> set[str]:
        """Where open calls may wait that nobody is known to have begun on."""
        return {each.queue for each in self._waiting.values() if not each.reply.done()}

    async def sweep(self, reconnects: int = 0, empty: Container[str] = ()) -> None:
        """Look the open calls up in the journal: find lost replies, lost calls, a new owner.

        What was published before this many reconnects, or to a queue that was `empty` just now, the
        broker may have lost.
        """
        open_calls = dict(self._waiting)
        seen = await self._journal.look(self.key, self.run.epoch, list(open_calls))
        match seen:
            case Gone():
                self.replaced()
            case Lost():
                for waiting in open_calls.values():
                    waiting.hear(self._noticed(waiting, "journal_lost"))
            case Overview() if seen.inbox not in ("", self._worker_id):
                self.replaced()
            case Overview():
                await self._resolve(open_calls, seen, reconnects, empty)

    async def _resolve(
        self,
        open_calls: Mapping[str, _Waiting],
        seen: Overview,
        reconnects: int,
        empty: Container[str],
    ) -> None:
        at = asyncio.get_running_loop().time()
        for path, waiting in open_calls.items():
            if path in seen.begun or path not in self._waiting:
                waiting.begin_by = math.inf
            stored = seen.results.get(path)
            if stored is not None:
                waiting.hear(self._noticed(waiting, "result", stored.result))
            elif waiting.begin_by <= time.time():
                waiting.fail(NotBegun(path))
            elif path in self._waiting and waiting.may_be_lost(reconnects, at):
                await self._look_after(waiting, claimed=path in seen.claimed)
            elif waiting.may_have_vanished(empty, at) and path not in seen.claimed:
                await self._look_after(waiting, claimed=False)

    async def _look_after(self, waiting: _Waiting, *, claimed: bool) -> None:
        """The broker may have lost this call: publish it again if nobody has had it twice."""
        if waiting.missed and not claimed:
            waiting.lost_at, waiting.missed = None, False
            waiting.trusted_until = asyncio.get_running_loop().time() + VANISHED_S
            return await self._publish_again(waiting)
        waiting.missed = not claimed
        delay_s = WATCH_S if claimed else DOUBT_S
        waiting.look_at = asyncio.get_running_loop().time() + delay_s

    async def _publish_again(self, waiting: _Waiting) -> None:
        """Under a new carrier: should the first copy turn up, one of the two is dropped."""
        try:
            async with asyncio.timeout(waiting.left_s()):
                await self._publish(waiting)
        except Unroutable as e:  # its session's worker has gone: the caller's affair
            waiting.fail(e)
        except (BrokerLost, BrokerClosed):
            raise
        except BrokerError as e:  # its queue's node is down, say: it waits for the next look
            log.warning("call not published again", extra={"rollout": self.key, "error": str(e)})

    def _noticed(self, waiting: _Waiting, kind: ReplyKind, result: bytes = b"") -> Reply:
        path = waiting.ask.path
        return Reply(rollout=self.key, epoch=self.run.epoch, path=path, kind=kind, result=result)

    async def state(self) -> bytes:
        """The rollout's state as its last finished call left it. Raises Replaced."""
        seen = await patiently(lambda: self._journal.look(self.key, self.run.epoch, []))
        if not isinstance(seen, Overview):
            raise Replaced(self.key)
        return seen.state

    def replaced(self) -> None:
        """Wake everything that waits: this worker is not the owner any more."""
        for waiting in self._waiting.values():
            waiting.fail(Replaced(self.key))

    @property
    def waits(self) -> bool:
        """Whether any call is out."""
        return bool(self._waiting)

    def is_due(self, reconnects: int) -> bool:
        """Whether to look for a call that somebody should have begun on by now, or that a broker
        that was left this many times may have lost."""
        now, at = time.time(), asyncio.get_running_loop().time()
        return any(
            each.begin_by <= now or (each.look_at <= at and each.may_be_lost(reconnects, at))
            for each in self._waiting.values()
        )
