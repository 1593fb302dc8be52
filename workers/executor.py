"""How gateway and tool workers execute calls: begin, work, finish, reply, ack.

The journal decides (broker/journal/base.py): a finished call is answered from it, a call that is
claimed by another copy is dropped, and what we finish is stored before anybody hears of it. So a
call's result survives whoever dies, and no finished call is made twice.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import msgspec

from broker import codec
from broker.base import Broker, Outgoing
from broker.crashpoints import crash_at
from broker.journal.base import (
    Begun,
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
from broker.serve import Ack, Later, Outcome
from broker.topology import REPLY

log = logging.getLogger(__name__)

#: Replies are hints; a larger result is read from the journal by its owner.
MAX_INLINE_BYTES: Final = 256 * 1024
#: While an owner uploads a lost journal, its executor offers the finished result this often.
_LOST_RETRY_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class Done:
    """A call's packed result, final whether good or bad."""

    result: bytes
    state: bytes | None = None
    """The rollout's new state, where the tool may have changed it."""


@dataclass(frozen=True, slots=True)
class Postponed:
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
        self._running: dict[tuple[str, str, str], asyncio.Future[Outcome]] = {}

    async def execute(self, call: Call, work: Work) -> Outcome:
        """Run `work` for this call unless its result is known; answer its owner.

        `work` turns every failure of the model or tool into a result; what it raises is ours.
        """
        key = (call.rollout, call.epoch, call.path)
        running = self._running.get(key)
        if running is not None:  # a redelivery of what we are doing: its first copy decides
            await asyncio.shield(running)
            return Ack()
        if time.time() > call.deadline:
            return Ack()  # its owner has recorded the timeout, or will at its replay
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._running[key] = future
        try:
            outcome = await self._execute(call, work)
            future.set_result(outcome)
            return outcome
        finally:
            del self._running[key]
            if not future.done():
                future.cancel()

    async def _execute(self, call: Call, work: Work) -> Outcome:
        ref = ref_of(call)
        match await self._begin(call, ref):
            case Found(result, inbox):
                self._reply(call, inbox, "result", result)
            case Mismatch(inbox):
                self._reply(call, inbox, "mismatch")
            case Gone():
                self._reply(call, "", "gone")
            case Go() as go:
                crash_at("executor.after_begin")
                done = await work(go)
                crash_at("executor.after_work")
                if isinstance(done, Postponed):
                    again = msgspec.structs.replace(
                        call, tries=call.tries + done.tries, force=False
                    )
                    return Later(done.delay_s, codec.encode(again))
                await self._finish(call, ref, go, done)
                crash_at("executor.after_reply")
        return Ack()

    async def _begin(self, call: Call, ref: CallRef) -> Begun:
        """Begin; while the journal is lost, keep the call until its owner has uploaded.

        So the owner never has to publish it again, and no copy of it can run beside ours.
        """
        while True:
            begun = await self._journal.begin(ref, force=call.force)
            if not isinstance(begun, Lost) or time.time() > call.deadline:
                return begun
            self._reply(call, "", "journal_lost")
            await asyncio.sleep(_LOST_RETRY_S)

    async def _finish(self, call: Call, ref: CallRef, go: Go, done: Done) -> None:
        while True:
            finished = await patiently(
                lambda: self._journal.finish(
                    ref, done.result, state=done.state, state_version=go.state_version
                )
            )
            match finished:
                case Finished(result, _, inbox):
                    crash_at("executor.after_finish")
                    return self._reply(call, inbox, "result", result)
                case Gone():
                    return self._reply(call, "", "gone")
                case Lost() if time.time() > call.deadline:
                    return log.warning("result dropped", extra={"rollout": call.rollout})
                case Lost():  # keep what was paid for until the owner has uploaded
                    self._reply(call, "", "journal_lost")
                    await asyncio.sleep(_LOST_RETRY_S)

    def _reply(self, call: Call, inbox: str, kind: ReplyKind, result: bytes = b"") -> None:
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
                body=codec.encode(reply),
                kind=codec.kind_of(Reply),
                persistent=False,
            )
        )


def ref_of(call: Call) -> CallRef:
    """The call as the journal names it."""
    return CallRef(
        rollout=call.rollout,
        epoch=call.epoch,
        path=call.path,
        carrier=call.carrier,
        request_hash=call.request_hash,
        held=call.held,
    )
