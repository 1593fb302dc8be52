"""How an owner makes calls: post, wait for the reply, trust the journal.

A call is confirmed as every message is, but nobody waits for that: the broker's word is noted when
it comes, and wakes the caller only where it is a refusal. So a full queue is waited for, and a
queue that is gone is an error, at once, as if the call had been published and awaited.

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
from collections.abc import Container, Mapping
from typing import Final

from broker import codec
from broker.base import Broker, Outgoing
from broker.crashpoints import crash_at
from broker.deadlines import Deadlines
from broker.errors import (
    BrokerClosed,
    BrokerError,
    BrokerLost,
    QueueFull,
    Unroutable,
    WarrenError,
)
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
from broker.messages import Reply, ReplyKind
from broker.names import new_id
from broker.serve import publish_patiently
from broker.topology import QueueSpec
from workers.waiting import Ask, Waiting, waiting_for

log = logging.getLogger(__name__)

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
        self._waiting: dict[str, Waiting] = {}
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
        deadlines = self._deadlines
        waiting = waiting_for(ask, self._broker, deadlines.loop)
        try:
            with deadlines.within(max(ask.timeout_s, 0.0)):
                if ask.queue is not None:
                    await self._declare(ask.queue)
                self._waiting[ask.path] = waiting
                self._post(waiting)
                try:
                    answer = await self._answer(waiting)
                finally:
                    waiting.wanted = False
            crash_at("owner.after_reply")
            return answer
        except TimeoutError:
            return await self._give_up(waiting, ask.on_timeout())
        except NotBegun:
            return await self._give_up(waiting, (ask.on_wait or ask.on_timeout)())
        finally:
            self._waiting.pop(ask.path, None)

    async def _declare(self, queue: QueueSpec) -> None:
        if queue.name not in self._declared:
            await self._broker.declare([queue])
            self._declared.add(queue.name)

    def _post(self, waiting: Waiting) -> None:
        """Under a new carrier: should an earlier copy turn up, one of the two is dropped."""
        waiting.sending = True
        self._broker.post(self._message(waiting), waiting)

    def _message(self, waiting: Waiting) -> Outgoing:
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
        )
        return Outgoing(
            exchange=ask.exchange,
            key=ask.key,
            body=codec.encode(call),
            kind=codec.kind_of(type(call)),
            persistent=False,
        )

    async def _insist(self, waiting: Waiting, refusal: WarrenError) -> None:
        """Publish what the broker refused, where waiting or declaring again may help."""
        waiting.refusal = None
        try:
            if not isinstance(refusal, QueueFull | Unroutable):
                raise refusal
            await publish_patiently(self._broker, self._message(waiting), after=refusal)
            waiting.published()
        except (BrokerLost, BrokerClosed, Unroutable):
            raise
        except BrokerError as e:  # its queue's node is down, say
            if waiting.published_in == math.inf:
                raise
            log.warning("call not published again", extra={"rollout": self.key, "error": str(e)})
            waiting.sending = False  # the next look finds what became of the earlier copy

    async def _answer(self, waiting: Waiting) -> bytes:
        while True:
            if waiting.refusal is not None:
                await self._insist(waiting, waiting.refusal)
            reply = await waiting.reply
            if reply is not None and reply.kind == "result" and reply.result:
                return reply.result
            waiting.wait_on()
            if reply is not None and (result := await self._heed(reply)):
                return result

    async def _heed(self, reply: Reply) -> bytes:
        """Do what a reply asks for that does not hold the result; empty, or the result."""
        match reply.kind:
            case "result":  # too large for a hint
                read = functools.partial(self._journal.result, self.key, self.run.epoch, reply.path)
                if result := await patiently(read):
                    return result
                await patiently(self.sweep)  # it has gone: why?
            case "journal_lost":
                await self._upload()
            case "gone":
                raise Replaced(self.key)
            case "mismatch":
                raise Nondeterministic(reply.path)
        return b""

    async def _give_up(self, waiting: Waiting, given_up: bytes) -> bytes:
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
                self._resolve(open_calls, seen, reconnects, empty)

    def _resolve(
        self,
        open_calls: Mapping[str, Waiting],
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
                self._look_after(waiting, claimed=path in seen.claimed)
            elif waiting.may_have_vanished(empty, at) and path not in seen.claimed:
                self._look_after(waiting, claimed=False)

    def _look_after(self, waiting: Waiting, *, claimed: bool) -> None:
        """The broker may have lost this call: publish it again if nobody has had it twice."""
        if waiting.missed and not claimed:
            waiting.lost_at, waiting.missed = None, False
            waiting.trusted_until = asyncio.get_running_loop().time() + VANISHED_S
            return self._post(waiting)
        waiting.missed = not claimed
        delay_s = WATCH_S if claimed else DOUBT_S
        waiting.look_at = asyncio.get_running_loop().time() + delay_s

    def _noticed(self, waiting: Waiting, kind: ReplyKind, result: bytes = b"") -> Reply:
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
