"""The model behind tests/test_journal_model.py: two owners, two executors, a broker, one rollout.

Executors have leases, which a dead one's may outlast. A broker that is restarted has forgotten
calls, but for those that have been on its ladder. Agents are deterministic given their results;
every paid call gives another sample, so whatever is paid twice or mixed shows. `mirror` is what
the journal has to know by its promises.
"""

import dataclasses
import hashlib
import uuid
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from msgspec.structs import replace

from broker.journal.base import (
    Busy,
    CallRef,
    Committed,
    Duplicate,
    Finished,
    Found,
    Go,
    Gone,
    Journal,
    Lost,
    Mismatch,
    Overview,
    Run,
    Stored,
    Upload,
)

KEY: Final = "run.g/0/0"
#: Calls of the rollout, one after the other.
CALLS: Final = 4

Wait = Callable[[Coroutine[Any, Any, Any]], Any]


class Store(Protocol):
    """A journal that can be damaged."""

    @property
    def journal(self) -> Journal: ...
    def snapshot(self) -> object: ...
    def restore(self, snapshot: object) -> None: ...


@dataclass(frozen=True)
class Message:
    """A published call."""

    ref: CallRef
    reply_to: str
    force: bool = False
    durable: bool = False
    """Whether the broker still has it when it was restarted."""


@dataclass
class Owner:
    """An agent worker that runs the rollout and holds a task's delivery."""

    inbox: str
    epoch: str
    attempt: int
    results: dict[str, Stored]
    message: Message | None = None
    lost: bool = False

    @property
    def path(self) -> str:
        return str(len(self.results))

    @property
    def done(self) -> bool:
        return len(self.results) == CALLS


@dataclass
class Executing:
    """A delivery that an executor holds; `result` once it has paid for it."""

    message: Message
    result: bytes | None = None
    finished: bool = False
    forgotten: bool = False
    """Whether the broker has it no more."""


@dataclass
class Mirror:
    """What the journal knows of the rollout."""

    epoch: str = ""
    results: dict[str, Stored] = field(default_factory=dict)
    claims: dict[str, CallRef] = field(default_factory=dict)
    """By path; without an executor where the call waits on the ladder."""
    committed: bool = False

    def copy(self) -> "Mirror":
        return Mirror(self.epoch, dict(self.results), dict(self.claims), self.committed)


def request(results: Mapping[str, Stored], path: str) -> bytes:
    """What a deterministic agent asks at `path`: all that was answered before."""
    before = [results[str(n)].result for n in range(int(path))]
    return hashlib.blake2b(repr(before).encode(), digest_size=16).digest()


class World:
    """Every arrow of the protocol as a method that takes it and checks what must hold."""

    def __init__(self, store: Store, wait: Wait) -> None:
        self.store = store
        self.wait = wait
        self.tasks = 1
        self.calls: list[Message] = []
        self.ladder: list[Message] = []
        self.owners: dict[str, Owner | None] = {"A": None, "B": None}
        self.executors: dict[str, Executing | None] = {"X": None, "Y": None}
        self.names: dict[str, str] = {}
        """The executors' leases."""
        self.leases: set[str] = set()
        """The owners'."""
        self.dead: list[str] = []
        """Leases of executors that are dead, which hold still."""
        self.mirror = Mirror()
        self.snapshot: tuple[object, Mirror] | None = None
        self.damaged: set[str] = set()
        self.epochs: set[str] = set()
        self.answers: dict[tuple[str, str], bytes] = {}
        self.ended = False
        self._samples = 0
        self._inboxes = 0
        for who in self.executors:
            self._live(who)

    @property
    def journal(self) -> Journal:
        return self.store.journal

    def intact(self, epoch: str) -> bool:
        """Whether the journal has kept all it was told about this attempt."""
        return epoch not in self.damaged

    # owners

    def take(self, who: str) -> None:
        self._inboxes += 1
        inbox = f"inbox-{self._inboxes}"
        self.wait(self.journal.renew_lease(inbox))
        self.leases.add(inbox)
        taken = self.wait(self.journal.take(KEY, inbox))
        if self.mirror.committed:
            assert taken == Committed(), "a committed rollout ran again"
        if isinstance(taken, Committed):
            assert self.mirror.committed
            self.tasks -= 1
        if not isinstance(taken, Run):
            return
        assert taken.epoch == self.mirror.epoch or taken.epoch not in self.epochs
        if taken.epoch != self.mirror.epoch:
            assert not self.mirror.epoch, "a take keeps the epoch"
            self.mirror = Mirror(taken.epoch)
        assert taken.results == self.mirror.results
        self.epochs.add(taken.epoch)
        self.tasks -= 1
        for path, stored in taken.results.items():
            self._hear(taken.epoch, path, stored.result)
        results = _played(taken.results)
        self.owners[who] = Owner(inbox, taken.epoch, taken.attempt, results)

    def publish(self, who: str, *, force: bool = False) -> None:
        owner = self._owner(who)
        ref = CallRef(
            rollout=KEY,
            epoch=owner.epoch,
            path=owner.path,
            carrier=uuid.uuid4().hex,
            request_hash=request(owner.results, owner.path),
            held=len(owner.results),
            lasting=len(owner.results) % 2 == 0,
        )
        owner.message = Message(ref, owner.inbox, force)
        self.calls.append(owner.message)

    def publish_again(self, who: str) -> None:
        message = self._owner(who).message
        assert message is not None
        self.calls.append(message)

    def replay_differently(self, who: str, path: str) -> None:
        owner = self._owner(who)
        ref = CallRef(
            rollout=KEY,
            epoch=owner.epoch,
            path=path,
            carrier=uuid.uuid4().hex,
            request_hash=b"other",
            held=0,
        )
        known = path in self.mirror.results or path in self.mirror.claims
        if known and owner.epoch == self.mirror.epoch:
            assert isinstance(self.wait(self.journal.begin(ref)), Mismatch)

    def sweep(self, who: str) -> None:
        owner = self._owner(who)
        seen = self.wait(self.journal.look(KEY, owner.epoch, [owner.path]))
        if isinstance(seen, Lost):
            owner.lost = True
        elif isinstance(seen, Gone) or seen.inbox != owner.inbox:
            self.stop_owner(who)
        elif owner.path in seen.results:
            self._answer(owner, owner.path, seen.results[owner.path])
        elif isinstance(seen, Overview) and owner.message and not seen.claimed:
            self.publish(who)

    def upload(self, who: str) -> None:
        owner = self._owner(who)
        upload = Upload(
            rollout=KEY,
            epoch=owner.epoch,
            attempt=owner.attempt,
            inbox=owner.inbox,
            results=dict(owner.results),
        )
        owner.lost = False
        if not self.wait(self.journal.upload(upload)):
            assert (
                not self.intact(owner.epoch)
                or self.mirror.epoch != owner.epoch
                or (self.mirror.committed or len(self.leases) > 1)
            )
            return self.stop_owner(who)
        assert not self.mirror.committed
        assert self.mirror.epoch in {"", owner.epoch}
        self.mirror.epoch = owner.epoch
        for path, stored in owner.results.items():
            assert self.mirror.results.setdefault(path, stored) == stored
            self.mirror.claims.pop(path, None)

    def end(self, who: str) -> None:
        owner = self._owner(who)
        self.ended = True
        self.wait(self.journal.ended(KEY, owner.epoch))
        self.owners[who] = None

    def restart(self, who: str) -> None:
        owner = self._owner(who)
        attempt = self.wait(self.journal.restart(KEY, owner.epoch))
        if attempt is None:
            return self.stop_owner(who)
        taken = self.wait(self.journal.take(KEY, owner.inbox))
        assert isinstance(taken, Run)
        assert taken.attempt == attempt
        assert taken.epoch not in self.epochs
        self.wait(self.journal.release(KEY, taken.epoch, owner.inbox))
        self.mirror = Mirror(taken.epoch)
        self.epochs.add(taken.epoch)
        self.stop_owner(who)

    def stop_owner(self, who: str) -> None:
        """Its task goes back to the queue, whether it crashed or gave it back."""
        if self.owners[who] is not None:
            self.tasks += 1
        self.owners[who] = None

    def lease_ends(self, inbox: str) -> None:
        self.leases.discard(inbox)
        self.wait(self.journal.end_lease(inbox))

    def commit(self) -> None:
        self.wait(self.journal.committed([KEY]))
        self.mirror = Mirror(committed=True)

    # executors

    def _live(self, who: str) -> None:
        self.names[who] = f"{who}-{uuid.uuid4().hex}"
        self.wait(self.journal.renew_lease(self.names[who]))

    def _holds(self, claim: CallRef | None, ours: str) -> bool:
        """Whether another executor that may live has it in hand."""
        if claim is None or claim.executor in {"", ours}:
            return False
        return claim.executor in {*self.names.values(), *self.dead}

    def begin(self, who: str, index: int) -> None:
        message = self.calls.pop(index)
        ref = replace(message.ref, executor=self.names[who])
        begun = self.wait(self.journal.begin(ref, force=message.force))
        mirror = self.mirror
        if mirror.committed or mirror.epoch not in {"", ref.epoch}:
            assert isinstance(begun, Gone), begun
        match begun:
            case Go():
                assert ref.path not in mirror.results, "a finished call was executed again"
                assert len(mirror.results) >= ref.held, "a lost journal was not noticed"
                claim = mirror.claims.get(ref.path)
                if not message.force:
                    assert not self._holds(claim, ref.executor), "two executors of one call"
                    waits = claim is not None and not claim.executor
                    assert not waits or claim == replace(ref, executor=""), "it waits elsewhere"
                mirror.claims[ref.path] = ref
                self.executors[who] = Executing(message)
            case Found(result, inbox):
                assert mirror.results[ref.path] == Stored(ref.request_hash, result)
                self._reply(inbox or message.reply_to, ref, result)
            case Mismatch(inbox):
                assert not self.intact(ref.epoch), "a deterministic agent was blamed"
                self._blame(inbox)
            case Lost():
                assert not self.intact(ref.epoch), "an intact journal was taken for lost"
                self._tell_lost(message)
            case Busy():
                assert not message.force
                assert self._holds(mirror.claims.get(ref.path), ref.executor)
                self.calls.append(message)
            case Duplicate():
                assert not message.force
                claim = mirror.claims[ref.path]
                assert not claim.executor
                assert claim.carrier != ref.carrier
            case Gone():
                self._tell_gone(message)

    def work(self, who: str) -> None:
        executing = self._executing(who)
        self._samples += 1
        executing.result = f"{executing.message.ref.path}#{self._samples}".encode()

    def finish(self, who: str, *, reply_lost: bool = False) -> None:
        executing = self._executing(who)
        ref = executing.message.ref
        assert executing.result is not None
        finished = self.wait(self.journal.finish(ref, executing.result))
        match finished:
            case Finished(result, won, inbox):
                assert won == (ref.path not in self.mirror.results)
                stored = self.mirror.results.setdefault(ref.path, Stored(ref.request_hash, result))
                assert stored == Stored(ref.request_hash, result)
                self.mirror.claims.pop(ref.path, None)
                executing.finished = True
                if not reply_lost:
                    self._reply(inbox or executing.message.reply_to, ref, result)
            case Gone():
                assert self.mirror.epoch != ref.epoch or not self.intact(ref.epoch)
                executing.finished = True
                self._tell_gone(executing.message)
            case Lost():
                assert not self.intact(ref.epoch)
                self._tell_lost(executing.message, keep=False)

    def put_off(self, who: str) -> None:
        """Its message waits on the ladder from now on, and then the journal hears of it."""
        message = self._executing(who).message
        ref = replace(message.ref, executor=self.names[who])
        self.ladder.append(dataclasses.replace(message, durable=True))
        self.wait(self.journal.put_off(ref))
        if self.mirror.claims.get(ref.path) == ref:
            self.mirror.claims[ref.path] = replace(ref, executor="")
        self.executors[who] = None

    def wait_is_over(self) -> None:
        self.calls.append(self.ladder.pop(0))

    def ack(self, who: str) -> None:
        self.executors[who] = None

    def each_call(self) -> range:
        return range(len(self.calls))

    def deliver_twice(self, index: int) -> None:
        self.calls.append(self.calls[index])

    def crash_executor(self, who: str) -> None:
        """Another one takes its place; its lease holds for a while."""
        executing = self._executing(who)
        if not executing.forgotten:
            self.calls.append(executing.message)
        self.executors[who] = None
        self.dead.append(self.names[who])
        self._live(who)

    def dead_lease_ends(self) -> None:
        self.wait(self.journal.end_lease(self.dead.pop(0)))

    # damage

    def broker_restarts(self) -> None:
        """What executors have in hand goes on there, and nowhere else."""
        self.calls = [message for message in self.calls if message.durable]
        for executing in self.executors.values():
            if executing is not None:
                executing.forgotten = not executing.message.durable

    def remember(self) -> None:
        self.snapshot = (self.store.snapshot(), self.mirror.copy())

    def roll_back(self) -> None:
        assert self.snapshot is not None
        stored, mirror = self.snapshot
        self.store.restore(stored)
        self.mirror = mirror.copy()
        self.damaged |= self.epochs

    def flush(self) -> None:
        self.store.restore(None)
        self.mirror = Mirror()
        self.damaged |= self.epochs

    # what is said

    def _owner(self, who: str) -> Owner:
        owner = self.owners[who]
        assert owner is not None
        return owner

    def _executing(self, who: str) -> Executing:
        executing = self.executors[who]
        assert executing is not None
        return executing

    def _find(self, inbox: str) -> tuple[str, Owner] | None:
        return next(((w, o) for w, o in self.owners.items() if o and o.inbox == inbox), None)

    def _hear(self, epoch: str, path: str, result: bytes) -> None:
        first = self.answers.setdefault((epoch, path), result)
        assert first == result or not self.intact(epoch), "owners saw different results"

    def _answer(self, owner: Owner, path: str, stored: Stored) -> None:
        if path != owner.path or stored.request_hash != request(owner.results, path):
            return
        self._hear(owner.epoch, path, stored.result)
        owner.results[path] = stored
        owner.message = None

    def _reply(self, inbox: str, ref: CallRef, result: bytes) -> None:
        found = self._find(inbox)
        if found is not None and found[1].epoch == ref.epoch:
            self._answer(found[1], ref.path, Stored(ref.request_hash, result))

    def _tell_lost(self, message: Message, *, keep: bool = True) -> None:
        found = self._find(message.reply_to)
        if found is not None:
            found[1].lost = True
            if keep:
                self.calls.append(message)

    def _tell_gone(self, message: Message) -> None:
        found = self._find(message.reply_to)
        if found is not None and found[1].epoch == message.ref.epoch:
            self.stop_owner(found[0])

    def _blame(self, inbox: str) -> None:
        found = self._find(inbox)
        if found is not None:
            self.restart(found[0])


def _played(results: Mapping[str, Stored]) -> dict[str, Stored]:
    """What a replay gets through: results without a gap, whose requests are the same."""
    played: dict[str, Stored] = {}
    while (path := str(len(played))) in results:
        if results[path].request_hash != request(played, path):
            break
        played[path] = results[path]
    return played
