"""The model behind tests/test_journal_model.py: one rollout, what lies in the broker, the journal.

Agents are deterministic given their results; every paid call gives another sample, so whatever is
paid twice or mixed shows. `mirror` is what the journal has to know by its promises. Owners stand
in rollout_owners.py, executors in rollout_executors.py.
"""

import hashlib
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from broker.journal.base import CallRef, Journal, Stored

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
    """On a ladder: a broker that is restarted still has it."""


@dataclass(frozen=True)
class Claim:
    """Who has begun on a call: the message's carrier and the executor's lease, or, on a ladder,
    the carrier alone."""

    carrier: str
    lease: str = ""


@dataclass
class Mirror:
    """What the journal knows of the rollout."""

    epoch: str = ""
    results: dict[str, Stored] = field(default_factory=dict)
    claims: dict[str, Claim] = field(default_factory=dict)
    committed: bool = False

    def copy(self) -> "Mirror":
        return Mirror(self.epoch, dict(self.results), dict(self.claims), self.committed)


def request(results: Mapping[str, Stored], path: str) -> bytes:
    """What a deterministic agent asks at `path`: all that was answered before."""
    before = [results[str(n)].result for n in range(int(path))]
    return hashlib.blake2b(repr(before).encode(), digest_size=16).digest()


class History:
    """What has happened so far, and what must still hold because of it."""

    def __init__(self, store: Store, wait: Wait) -> None:
        self.store = store
        self.wait = wait
        self.tasks = 1
        self.calls: list[Message] = []
        self.leases: set[str] = set()
        """Those that hold, of inboxes and of executors."""
        self.mirror = Mirror()
        self.epochs: set[str] = set()
        self.ended = False
        self.snapshot: tuple[object, Mirror] | None = None
        self._damaged: set[str] = set()
        self._answers: dict[tuple[str, str], bytes] = {}
        self._names = 0

    @property
    def journal(self) -> Journal:
        return self.store.journal

    def intact(self, epoch: str) -> bool:
        """Whether the journal has kept all it was told about this attempt."""
        return epoch not in self._damaged

    def is_claimed(self, path: str) -> bool:
        """Whether somebody who lives has this call in hand, or it waits on a ladder."""
        claim = self.mirror.claims.get(path)
        return claim is not None and (not claim.lease or claim.lease in self.leases)

    def hear(self, epoch: str, path: str, result: bytes) -> None:
        """An owner learns of a result: all of one attempt learn of the same."""
        first = self._answers.setdefault((epoch, path), result)
        assert first == result or not self.intact(epoch), "owners saw different results"

    def new_lease(self, kind: str) -> str:
        """Of a process that begins."""
        self._names += 1
        lease = f"{kind}-{self._names}"
        self.wait(self.journal.renew_lease(lease))
        self.leases.add(lease)
        return lease

    def lease_ends(self, lease: str) -> None:
        self.leases.discard(lease)
        self.wait(self.journal.end_lease(lease))

    def commit(self) -> None:
        self.wait(self.journal.committed([KEY]))
        self.mirror = Mirror(committed=True)

    def each_call(self) -> range:
        return range(len(self.calls))

    def deliver_twice(self, index: int) -> None:
        self.calls.append(self.calls[index])

    def forget_calls(self) -> None:
        """The broker held them in memory alone, and has been restarted."""
        self.calls = [message for message in self.calls if message.durable]

    def remember(self) -> None:
        self.snapshot = (self.store.snapshot(), self.mirror.copy())

    def roll_back(self) -> None:
        assert self.snapshot is not None
        stored, mirror = self.snapshot
        self.store.restore(stored)
        self.mirror = mirror.copy()
        self._damaged |= self.epochs

    def flush(self) -> None:
        self.store.restore(None)
        self.mirror = Mirror()
        self._damaged |= self.epochs
