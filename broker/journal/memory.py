"""The journal in this process's memory: for tests and for runs that need not outlive it."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar, TypeVarTuple

from broker.journal.base import LEASE_S
from broker.journal.local import LocalJournal
from broker.journal.record import TOMBSTONE, VERIFY, Entry, Head
from broker.journal.runs import RunInfo, RunProgress, Totals
from broker.journal.totals import add_totals, bitmap

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

#: What has not changed for this long is forgotten.
KEEP_S: Final = 7 * 86400.0


class MemoryTable:
    """Records in dictionaries; what is stored is immutable, so `copy` is a snapshot."""

    def __init__(self) -> None:
        self._heads: dict[str, Head] = {}
        self._changed: dict[str, float] = {}
        self._states: dict[str, bytes] = {}
        self._entries: dict[str, dict[str, Entry]] = {}

    def head(self, key: str) -> Head | None:
        return self._heads.get(key)

    def put(self, key: str, head: Head) -> None:
        self._heads[key] = head
        self._changed.pop(key, None)  # to the end: the order is that of changes
        self._changed[key] = time.monotonic()

    def progress(self, key: str, head: Head) -> None:
        self.put(key, head)

    def state(self, key: str) -> bytes:
        return self._states.get(key, b"")

    def put_state(self, key: str, state: bytes) -> None:
        self._states[key] = state

    def entry(self, key: str, path: str) -> Entry | None:
        return self._entries.get(key, {}).get(path)

    def put_entry(self, key: str, path: str, entry: Entry) -> None:
        self._entries.setdefault(key, {})[path] = entry

    def put_claim(self, key: str, path: str, entry: Entry) -> None:
        self.put_entry(key, path, entry)

    def entries(self, key: str) -> Mapping[str, Entry]:
        return dict(self._entries.get(key, {}))

    def clear(self, key: str) -> None:
        self._entries.pop(key, None)
        self._states.pop(key, None)

    def drop(self, key: str) -> None:
        self.clear(key)
        self._heads.pop(key, None)
        self._changed.pop(key, None)

    def bury(self, keys: Sequence[str]) -> None:
        for key in keys:
            self.clear(key)
            self.put(key, TOMBSTONE)
            self.drop(key + VERIFY)

    def expire(self, keep_s: float) -> None:
        """Forget what has not changed for `keep_s`."""
        oldest = time.monotonic() - keep_s
        while self._changed:
            key, changed = next(iter(self._changed.items()))
            if changed > oldest:
                return
            self.drop(key)

    def copy(self) -> "MemoryTable":
        """A snapshot that later operations leave alone."""
        other = MemoryTable()
        other.restore(self)
        return other

    def restore(self, other: "MemoryTable") -> None:
        """Become what `other` is: a flush where it is empty, a rollback where it is older."""
        self._heads = dict(other._heads)
        self._changed = dict(other._changed)
        self._states = dict(other._states)
        self._entries = {key: dict(entries) for key, entries in other._entries.items()}


class MemoryJournal(LocalJournal):
    """`Journal` that ends with its process."""

    def __init__(self, *, lease_s: float = LEASE_S, keep_s: float = KEEP_S) -> None:
        self.table = MemoryTable()
        self._keep_s = keep_s
        super().__init__(self.table, lease_s=lease_s)

    async def _do(self, operation: Callable[[*Ts], T], *args: *Ts) -> T:
        self.table.expire(self._keep_s)
        return operation(*args)

    async def close(self) -> None:
        """Nothing to let go of."""


@dataclass(slots=True)
class _Generation:
    published: int = 0
    complete: bool = False
    rows: set[tuple[int, int]] = field(default_factory=set)
    totals: dict[str, Totals] = field(default_factory=dict)


@dataclass(slots=True)
class _Known:
    info: RunInfo
    cancelled: bool = False


class MemoryRuns:
    """`Runs` that end with their process."""

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}
        self._generations: dict[str, dict[str, _Generation]] = {}

    def _generation(self, run: str, generation: str) -> _Generation:
        return self._generations.setdefault(run, {}).setdefault(generation, _Generation())

    async def register(self, info: RunInfo) -> None:
        known = self._known.get(info.run)
        if known is not None and known.info.generation == info.generation:
            known.info = info
        elif known is None or known.info.created_at <= info.created_at:
            self._known[info.run] = _Known(info)

    async def published(self, run: str, generation: str, count: int, complete: bool) -> None:
        record = self._generation(run, generation)
        if count >= record.published:
            record.published, record.complete = count, complete

    async def mark(
        self,
        run: str,
        generation: str,
        shard: str,
        rows: Sequence[tuple[int, int]],
        totals: Totals,
    ) -> None:
        record = self._generation(run, generation)
        record.rows.update(rows)
        record.totals[shard] = totals

    async def committed(self, run: str, generation: str, repeat: int) -> bytes:
        rows = self._generation(run, generation).rows
        return bitmap(index for index, r in rows if r == repeat)

    async def progress(self, run: str) -> RunProgress | None:
        known = self._known.get(run)
        if known is None:
            return None
        record = self._generation(run, known.info.generation)
        return RunProgress(
            info=known.info,
            published=record.published,
            complete=record.complete,
            committed=len(record.rows),
            cancelled=known.cancelled,
            totals=add_totals(record.totals.values()),
        )

    async def list(self) -> Sequence[RunProgress]:
        newest = sorted(self._known.values(), key=lambda k: k.info.created_at, reverse=True)
        standing = [await self.progress(known.info.run) for known in newest]
        return [progress for progress in standing if progress is not None]

    async def cancel(self, run: str) -> bool:
        known = self._known.get(run)
        if known is not None:
            known.cancelled = True
        return known is not None

    async def is_cancelled(self, run: str) -> bool:
        known = self._known.get(run)
        return known is not None and known.cancelled

    async def forget(self, run: str) -> None:
        self._known.pop(run, None)
        self._generations.pop(run, None)

    async def close(self) -> None:
        """Nothing to let go of."""
