"""Two gateway or tool workers of the model (rollout_model.py): every arrow of an executor as a
method that takes it and checks what must hold."""

from dataclasses import dataclass, replace

import msgspec

from broker.journal.base import (
    Busy,
    CallRef,
    Duplicate,
    Finished,
    Found,
    Go,
    Gone,
    Lost,
    Mismatch,
    Stored,
)
from tests.support.rollout_model import Claim, History, Message
from tests.support.rollout_owners import Owners


@dataclass
class Executing:
    """A delivery that an executor holds; `result` once it has paid for it."""

    message: Message
    ref: CallRef
    """As this executor asks the journal about it."""
    result: bytes | None = None
    finished: bool = False
    forgotten: bool = False
    """Whether the broker has it no more."""


class Executors:
    """Executors X and Y, each with the lease of the process that it is at present."""

    def __init__(self, history: History, owners: Owners) -> None:
        self.at: dict[str, Executing | None] = {"X": None, "Y": None}
        self._history = history
        self._owners = owners
        self._leases = {who: history.new_lease(who) for who in self.at}
        self._samples = 0

    def lease(self, who: str) -> str:
        """Of the process that it is now."""
        return self._leases[who]

    def begin(self, who: str, index: int) -> None:
        history, message = self._history, self._history.calls.pop(index)
        ref = msgspec.structs.replace(message.ref, executor=self._leases[who])
        begun = history.wait(history.journal.begin(ref, force=message.force))
        mirror = history.mirror
        if mirror.committed or mirror.epoch not in {"", ref.epoch}:
            assert isinstance(begun, Gone), begun
        match begun:
            case Go():
                assert ref.path not in mirror.results, "a finished call was executed again"
                assert len(mirror.results) >= ref.held, "a lost journal was not noticed"
                assert message.force or not self._is_others(ref), "two executors of one call"
                mirror.claims[ref.path] = Claim(ref.carrier, ref.executor)
                self.at[who] = Executing(message, ref)
            case Found(result, inbox):
                assert mirror.results[ref.path] == Stored(ref.request_hash, result)
                self._owners.reply(inbox or message.reply_to, ref, result)
            case Mismatch(inbox):
                assert not history.intact(ref.epoch), "a deterministic agent was blamed"
                self._owners.blame(inbox)
            case Lost():
                assert not history.intact(ref.epoch), "an intact journal was taken for lost"
                if self._owners.tell_lost(message):
                    history.calls.append(message)
            case Busy():
                assert mirror.claims[ref.path].lease in history.leases - {ref.executor}
                assert not message.force
                history.calls.append(message)
            case Duplicate():
                assert not mirror.claims[ref.path].lease, "a copy was dropped that may be the last"
                assert mirror.claims[ref.path].carrier != ref.carrier
                assert not message.force
            case Gone():
                self._owners.tell_gone(message)

    def _is_others(self, ref: CallRef) -> bool:
        """Whether the call is another's: of an executor that lives, or of a copy on a ladder."""
        claim = self._history.mirror.claims.get(ref.path)
        if claim is None or claim.lease == ref.executor:
            return False
        return claim.lease in self._history.leases if claim.lease else claim.carrier != ref.carrier

    def work(self, who: str) -> None:
        executing = self._executing(who)
        self._samples += 1
        executing.result = f"{executing.ref.path}#{self._samples}".encode()

    def put_off(self, who: str) -> None:
        """Its provider can't now: the message waits on a ladder, then the claim is let go."""
        executing, history = self._executing(who), self._history
        history.calls.append(replace(executing.message, durable=True))
        history.wait(history.journal.put_off(executing.ref))
        ref, mirror = executing.ref, history.mirror
        ours = mirror.claims.get(ref.path) == Claim(ref.carrier, ref.executor)
        if ours and mirror.epoch == ref.epoch:
            mirror.claims[ref.path] = Claim(ref.carrier)
        self.at[who] = None

    def finish(self, who: str, *, reply_lost: bool = False) -> None:
        executing, history = self._executing(who), self._history
        message, ref, mirror = executing.message, executing.ref, history.mirror
        assert executing.result is not None
        finished = history.wait(history.journal.finish(ref, executing.result))
        match finished:
            case Finished(result, won, inbox):
                assert won == (ref.path not in mirror.results)
                stored = mirror.results.setdefault(ref.path, Stored(ref.request_hash, result))
                assert stored == Stored(ref.request_hash, result)
                mirror.claims.pop(ref.path, None)
                executing.finished = True
                if not reply_lost:
                    self._owners.reply(inbox or message.reply_to, ref, result)
            case Gone():
                assert mirror.epoch != ref.epoch or not history.intact(ref.epoch)
                executing.finished = True
                self._owners.tell_gone(message)
            case Lost():
                assert not history.intact(ref.epoch)
                self._owners.tell_lost(message)

    def ack(self, who: str) -> None:
        self.at[who] = None

    def crash(self, who: str) -> None:
        """The broker delivers its call again, unless it has forgotten it; another takes its place,
        while its lease may hold for a while yet."""
        executing, self.at[who] = self._executing(who), None
        if not executing.forgotten:
            self._history.calls.append(executing.message)
        self._leases[who] = self._history.new_lease(who)

    def restart_broker(self) -> None:
        """It forgets the calls that it held in memory alone. Who has one in hand goes on."""
        self._history.forget_calls()
        for executing in self.at.values():
            if executing is not None:
                executing.forgotten = not executing.message.durable

    def _executing(self, who: str) -> Executing:
        executing = self.at[who]
        assert executing is not None
        return executing
