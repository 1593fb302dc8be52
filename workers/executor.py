"""How gateway and tool workers execute calls: begin, work, finish, reply, ack.

The journal decides (broker/journal/base.py): a finished call is answered from it, a call that is
claimed by another copy is dropped, and what we finish is stored before anybody hears of it. So a
call's result survives whoever dies, and no finished call is made twice. Nor is one that is being
made: while our lease holds, an executor that the broker gives our call to, since our connection
broke, waits for our result.
"""

import asyncio
import functools
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final

import msgspec

from broker import codec
from broker.base import Broker, Outgoing
from broker.crashpoints import crash_at
from broker.errors import JournalUnavailable
from broker.journal.base import (
    EXECUTOR_LEASE_S,
    EXECUTOR_RENEW_S,
    Begun,
    Busy,
    CallRef,
    Finished,
    Found,
    Go,
    Gone,
    Journal,
    Lost,
    Mismatch,
)
from broker.journal.patience import patiently
from broker.messages import Call, Reply, ReplyKind
from broker.names import new_worker_id
from broker.parting import parting
from broker.serve import Ack, Later, Outcome
from broker.topology import REPLY

log = logging.getLogger(__name__)

#: Replies are hints; a larger result is read from the journal by its owner.
MAX_INLINE_BYTES: Final = 256 * 1024
#: While an owner uploads a lost journal, its executor offers the finished result this often.
_LOST_RETRY_S: Final = 0.5
#: While another executor has a call in hand, we look this often whether it is done, or gone.
_BUSY_RETRY_S: Final = 0.5
#: Answers after which the journal is asked again.
_UNSETTLED: Final = (Lost, Busy)


class Done(msgspec.Struct, frozen=True):
    """A call's packed result, final whether good or bad."""

    result: bytes
    state: bytes | None = None
    """The rollout's new state, where the tool may have changed it."""


class Postponed(msgspec.Struct, frozen=True):
    """Nothing to store yet: try again after a wait in the broker."""

    delay_s: float
    tries: int = 1
    """How often it was asked in vain since it was taken from the queue."""


Work = Callable[[Go], Awaitable[Done | Postponed]]


class Executor:
    """Executes calls for one worker; knows which ones it is executing right now."""

    def __init__(self, broker: Broker, journal: Journal) -> None:
        self._broker = broker
        self._journal = journal
        self._running: dict[tuple[str, str, str], asyncio.Future[None] | None] = {}
        """With what a second copy waits for, once there is one."""
        self._lease = ""
        self._parting: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[None, None]:
        """Be known as alive while the context is open. (Unopened, nobody waits for our calls.)"""
        self._lease = new_worker_id("executor")
        await self._renew()
        async with asyncio.TaskGroup() as group:
            renewing = group.create_task(self._renewals())
            try:
                yield
            finally:
                renewing.cancel()
                await self._part()

    async def _renewals(self) -> None:
        while True:
            await asyncio.sleep(EXECUTOR_RENEW_S)
            with suppress(JournalUnavailable):  # what needs the journal says so itself
                await self._renew()

    async def _renew(self) -> None:
        if self._parting is None:
            await self._journal.renew_lease(self._lease, EXECUTOR_LEASE_S)

    async def _part(self) -> None:
        """We stop: what we give back is for others at once. Once for all that is cancelled."""
        if self._lease and self._parting is None:
            self._parting = asyncio.create_task(self._end(self._lease))
        if self._parting is not None:
            await asyncio.shield(self._parting)

    async def _end(self, lease: str) -> None:
        await parting(self._journal.end_lease(lease))

    async def _disown(self) -> None:
        """A claim of ours may stand for a call that we do not work on: nobody shall wait for it.

        So we are another from now on. What else we have in hand nobody waits for, either.
        """
        if self._lease:
            old, self._lease = self._lease, new_worker_id("executor")
            await self._end(old)

    async def execute(self, call: Call, work: Work) -> Outcome:
        """Run `work` for this call unless its result is known; answer its owner.

        `work` turns every failure of the model or tool into a result; what it raises is ours.
        """
        key = (call.rollout, call.epoch, call.path)
        if key in self._running:  # a redelivery of what we are doing: its first copy decides
            await asyncio.shield(self._end_of(key))
            return Ack()
        if time.time() > call.deadline:
            return Ack()  # its owner has recorded the timeout, or will at its replay
        self._running[key] = None
        done = False
        try:
            outcome = await self._execute(call, work)
            done = True
            return outcome
        except asyncio.CancelledError:
            await self._part()
            raise
        except Exception:
            await self._disown()
            raise
        finally:
            end = self._running.pop(key)
            if end is not None and done:
                end.set_result(None)
            elif end is not None:
                end.cancel()

    def _end_of(self, key: tuple[str, str, str]) -> asyncio.Future[None]:
        """Done when the copy that runs has come to its end, cancelled where it failed."""
        end = self._running[key]
        if end is None:
            end = self._running[key] = asyncio.get_running_loop().create_future()
        return end

    async def _execute(self, call: Call, work: Work) -> Outcome:
        ref = CallRef.of(call, self._lease)
        match await self._begin(call, ref):
            case Go() as go:
                crash_at("executor.after_begin")
                done = await work(go)
                crash_at("executor.after_work")
                if isinstance(done, Postponed):
                    again = msgspec.structs.replace(call, tries=call.tries + done.tries)
                    # not before: a claim without executor means that a durable message waits
                    placed = functools.partial(patiently, lambda: self._journal.put_off(ref))
                    return Later(done.delay_s, codec.encode(again), placed=placed)
                await self._finish(call, ref, go, done)
                crash_at("executor.after_reply")
            case Found(result, inbox):
                self._reply(call, inbox, "result", result)
            case Mismatch(inbox):
                self._reply(call, inbox, "mismatch")
            case Gone():
                self._reply(call, "", "gone")
        return Ack()

    async def _begin(self, call: Call, ref: CallRef) -> Begun:
        """Begin; while the journal is lost, keep the call until its owner has uploaded.

        So the owner never has to publish it again, and no copy of it can run beside ours. A call
        that another executor has in hand is kept too, until that one is done or gone.
        """
        while True:
            begun = await self._journal.begin(ref)
            if not isinstance(begun, _UNSETTLED) or time.time() > call.deadline:
                return begun
            if isinstance(begun, Lost):
                self._reply(call, "", "journal_lost")
            await asyncio.sleep(_LOST_RETRY_S if isinstance(begun, Lost) else _BUSY_RETRY_S)

    async def _finish(self, call: Call, ref: CallRef, go: Go, done: Done) -> None:
        while True:
            finished = await patiently(
                lambda: self._journal.finish(
                    ref, done.result, state=done.state, state_version=go.state_version
                )
            )
            match finished:
                case Finished(result, _, inbox, told):
                    crash_at("executor.after_finish")
                    return None if told else self._reply(call, inbox, "result", result)
                case Gone():
                    return self._reply(call, "", "gone")
                case Lost() if time.time() > call.deadline:
                    return log.warning("result dropped", extra={"rollout": call.rollout})
                case Lost():  # keep what was paid for until the owner has uploaded
                    self._reply(call, "", "journal_lost")
                    await asyncio.sleep(_LOST_RETRY_S)

    def _reply(self, call: Call, inbox: str, kind: ReplyKind, result: bytes = b"") -> None:
        # Not compressed: what makes one large are tokens, which zstd leaves as they are.
        reply = Reply(
            rollout=call.rollout,
            epoch=call.epoch,
            path=call.path,
            kind=kind,
            result=result if len(result) <= MAX_INLINE_BYTES else b"",
        )
        self._broker.publish_hint(
            Outgoing(
                exchange=REPLY.name,
                key=inbox or call.reply_to,
                body=codec.pack(reply),
                kind=codec.kind_of(Reply),
                persistent=False,
            )
        )
