"""The journal: the finished calls of every unfinished rollout, first result wins.

Three implementations keep these promises and pass the same contract tests: `memory.py`,
`sqlite.py` (embedded) and `redis.py`. The protocol and its reasons: ARCHITECTURE.md, "Calls".

A rollout's record, under `Task.journal_key` (a verifier has one of its own, `<key>/verify`):

    absent -> RUN (take) -> ENDED (its trajectory is published) -> COMMITTED (its row is durable)

* `epoch` names an attempt: one fresh start with an empty journal. Every take keeps it; only
  `restart` makes a new one. What carries an old epoch is GONE.
* a *claim* is made by `begin` for an executor, and holds as long as that one's lease: any other
  copy of the call, redelivered or published again, waits for it, and goes on where it is gone.
  So nothing runs twice, and no copy is thrown away while only a process that may die has the
  call: the broker forgets calls when it is restarted. A claim names the message's `carrier`
  too, which survives the retry ladder: a call that waits there belongs to its carrier alone.
* *journal lost*: `begin` and `finish` carry how many results the owner held. A journal that
  knows fewer, or no record at all, has been flushed or rolled back: the owner uploads.

Every method but `listen` is one atomic operation and one round trip. It raises JournalUnavailable
when the store does not answer; the caller keeps its delivery and tries again.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from broker.journal.listening import Tells
from broker.messages import Call, ToolCall

#: A worker renews its lease this often ...
LEASE_RENEW_S = 5.0
#: ... and is taken for dead when it has not for this long. Its rollouts may then be taken over.
LEASE_S = 20.0
#: Executors' leases are shorter, since nobody else may go on with their calls while they hold.
EXECUTOR_RENEW_S = 1.0
EXECUTOR_LEASE_S = 5.0


class Stored(msgspec.Struct, frozen=True):
    """A finished call as the journal has it."""

    request_hash: bytes
    result: bytes


class Run(msgspec.Struct, frozen=True):
    """This worker now owns the rollout: replay these results, then go on."""

    epoch: str
    attempt: int
    results: Mapping[str, Stored]
    """By call path."""
    state: bytes
    state_version: int
    idle_takes: int
    """Takes since the last finished call, this one included: from 2 on it is suspect."""
    strikes: int
    """Failures counted while it ran alone (`strike`)."""
    first_taken_at: float
    """Unix seconds at which this attempt was first taken: its deadline counts from here."""
    ended: bool = False
    """Its agent has finished before: replaying costs nothing."""

    @property
    def begun_before(self) -> bool:
        """Whether somebody has had this attempt before and left a trace of it."""
        return self.idle_takes > 1 or bool(self.results) or self.ended


class Owned(msgspec.Struct, frozen=True):
    """Another *living* worker owns it: hand the task to that worker's held queue."""

    inbox: str


class Committed(msgspec.Struct, frozen=True):
    """Its row is durable: drop the task."""


Taken = Run | Owned | Committed


class Go(msgspec.Struct, frozen=True):
    """Do the work. The claim is this carrier's."""

    starts: int
    """How often this call was begun, this time included: more than 3 looks like poison."""
    state: bytes
    state_version: int


class Found(msgspec.Struct, frozen=True):
    """It was finished before: reply with this, then ack."""

    result: bytes
    inbox: str


class Duplicate(msgspec.Struct, frozen=True):
    """Another carrier holds the claim: its copy is on a ladder, durable. Ack, drop this one."""


class Busy(msgspec.Struct, frozen=True):
    """Another executor, which lives, has this call in hand: keep our copy and ask again soon."""


class Mismatch(msgspec.Struct, frozen=True):
    """The path was finished or claimed with another request: the agent replays differently."""

    inbox: str


class Gone(msgspec.Struct, frozen=True):
    """The call belongs to an older attempt, or the rollout is committed. Ack and drop."""


class Lost(msgspec.Struct, frozen=True):
    """The journal knows less than the owner did: tell the owner, who uploads and calls again."""


Begun = Go | Found | Duplicate | Busy | Mismatch | Gone | Lost


class Finished(msgspec.Struct, frozen=True):
    """The winning result (ours, or one that was first) and whom to tell."""

    result: bytes
    won: bool
    inbox: str
    told: bool = False
    """Whether that inbox has heard of it from the journal (listening.py)."""


class Overview(msgspec.Struct, frozen=True):
    """What the owner's sweep reads."""

    inbox: str
    """The current owner; another than ourselves means we have been replaced."""
    results: Mapping[str, Stored]
    """Of the paths that were asked for."""
    begun: frozenset[str]
    """Of the paths that were asked for, those without a result that somebody has begun on."""
    claimed: frozenset[str]
    """Of these, those that an executor which lives has in hand, or that wait on a ladder."""
    state: bytes = b""
    """The rollout's state, as the last finished call left it."""
    state_version: int = 0


class CallRef(msgspec.Struct, frozen=True, kw_only=True):
    """Which call, as its message carries it (messages.Call)."""

    rollout: str
    epoch: str
    path: str
    carrier: str
    request_hash: bytes
    held: int
    executor: str = ""
    """Who asks: the name of its lease. Without one nobody waits for it, nor is told."""
    lasting: bool = True
    """Whether that it was begun must outlast a store whose claims end with its process: a tool may
    have acted, or have killed its worker. Of a model call such a store may keep it in memory."""

    @classmethod
    def of(cls, call: Call, executor: str = "") -> "CallRef":
        """The call of this message."""
        return cls(
            rollout=call.rollout,
            epoch=call.epoch,
            path=call.path,
            carrier=call.carrier,
            request_hash=call.request_hash,
            held=call.held,
            executor=executor,
            lasting=isinstance(call, ToolCall),
        )

    @property
    def claim(self) -> str:
        """What the journal notes down while it is executed."""
        return f"{self.carrier}@{self.executor}" if self.executor else self.carrier


class Upload(msgspec.Struct, frozen=True, kw_only=True):
    """Everything an owner knows of its rollout, to restore a journal that lost it."""

    rollout: str
    epoch: str
    attempt: int
    inbox: str
    results: Mapping[str, Stored]
    state: bytes = b""
    state_version: int = 0
    first_taken_at: float = 0.0
    opened: Mapping[str, bytes] = {}
    """Calls that are out, by path, with their request hashes. What was begun of them is not known
    any more, so each counts as begun once: at-most-once tools must not run again."""


class Journal(Tells, Protocol):
    """See the module's docstring. All names of rollouts are journal keys."""

    async def take(
        self, rollout: str, inbox: str, *, counts: bool = True, uncounted: int = 0
    ) -> Taken:
        """Become the owner; a record that is absent is made, with a new epoch, attempt 1.

        Owned only if another inbox owns it *and* its lease is alive. `counts=False` leaves
        `idle_takes` as it is (a worker's own moved copy came back to it). A record that is made
        begins with `uncounted` more: who had it in hand before and left no record (`keep_first`).
        """
        ...

    async def release(self, rollout: str, epoch: str, inbox: str) -> None:
        """Give up ownership politely: no owner, and this take does not count as idle.

        Nothing happens where another inbox owns it by now.
        """
        ...

    async def begin(self, call: CallRef, *, force: bool = False) -> Begun:
        """Claim a call before executing it.

        In this order: no record -> Lost; COMMITTED or another epoch -> Gone; a result with this
        request hash -> Found; fewer results than `call.held` -> Lost (before any Mismatch, which
        must be the agent's fault); a result or claim with another hash -> Mismatch; claimed for
        another executor whose lease holds -> Busy unless `force`; claimed for no executor, by
        another carrier -> Duplicate unless `force`; else, also where the claim's executor is
        gone, the claim is this carrier's -> Go, starts += 1.
        """
        ...

    async def put_off(self, call: CallRef) -> None:
        """Its message waits on a ladder, where it outlasts the broker: the carrier keeps the claim,
        and whoever gets the message next may begin at once. Nothing where the claim is not ours."""
        ...

    async def finish(
        self, call: CallRef, result: bytes, *, state: bytes | None = None, state_version: int = 0
    ) -> Finished | Gone | Lost:
        """Store the result unless there is one, clear the claim, count as progress, tell (`Tells`).

        With `state`: stored with the result, only if the stored version is still
        `state_version`, which then grows by one; otherwise (somebody else moved it: this
        executor was replaced) -> Gone, nothing stored. Gone too where the path was claimed or
        finished with another request, which only a journal that was rolled back can show.
        """
        ...

    async def keep_first(
        self, rollout: str, path: str, request_hash: bytes, result: bytes
    ) -> Stored | Committed:
        """Store a result that was worked out without owning anything, unless there is one here.

        What is there then, ours or the first one, whatever was asked for it. For work that needs
        no calls: it is `take` and `finish` in one, made when it is done. Whoever owns the record
        keeps it; one that is absent is made, with a new epoch, attempt 1. Counts as progress.
        """
        ...

    async def look(self, rollout: str, epoch: str, paths: Sequence[str]) -> Overview | Gone | Lost:
        """The owner's sweep: what has become of these calls."""
        ...

    async def result(self, rollout: str, epoch: str, path: str) -> bytes | None:
        """One call's packed result; None where there is none, or no such attempt: `look` says."""
        ...

    async def upload(self, upload: Upload) -> bool:
        """Restore a lost record: create it, or add the results that are missing.

        False where the record has another epoch or is committed, where another living worker
        owns it, or where a result differs from the owner's (a rolled-back journal went on without
        it): the owner stops and gives its task *back*, never acks it; the next take decides.
        """
        ...

    async def restart(self, rollout: str, epoch: str) -> int | None:
        """Begin a new attempt: results, claims and state go, a new epoch begins, no owner.

        The new attempt's number. Asked again it is the same number until somebody takes the new
        attempt, so that whoever noticed may die before publishing it; then, and where `epoch` is
        older still or the rollout is committed, None. Strikes stay. Without a record: attempt 2.
        """
        ...

    async def strike(self, rollout: str, epoch: str) -> int:
        """Count a failure against a rollout that ran alone; how many there are now.

        Of another epoch: nothing is counted.
        """
        ...

    async def ended(self, rollout: str, epoch: str) -> None:
        """Its trajectory is published (confirmed). Results are kept until the row is committed."""
        ...

    async def committed(self, rollouts: Sequence[str]) -> None:
        """Their rows are durable: keep a tombstone each, forget the rest. One pipelined operation.

        Also forgets `<key>/verify`, which from then on is as committed as its rollout.
        """
        ...

    async def forget(self, rollouts: Sequence[str]) -> None:
        """Drop these records, tombstones too: their rows are gone, so they are run afresh."""
        ...

    async def renew_lease(self, inbox: str, for_s: float | None = None) -> None:
        """This worker is alive for the next LEASE_S, or `for_s`; called every LEASE_RENEW_S."""
        ...

    async def end_lease(self, inbox: str) -> None:
        """This worker is going: its rollouts may be taken over at once."""
        ...

    async def close(self) -> None:
        """Let go of the store."""
        ...
