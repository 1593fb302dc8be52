"""How records lie in SQLite: the tables of a journal's file, and `rules.Table` over them.

What is known of living rollouts is kept in memory beside it, all but their results, since one
process at a time writes. So a rollout's operations read nothing back. What they change is written
by `write`, at the end of their transaction: each row once, whatever was done to it meanwhile.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from msgspec.structs import replace

from broker.journal.record import TOMBSTONE, VERIFY, Entry, Head

#: `calls` is apart from `heads`, and `states` too, so that no write copies big values.
TABLES: Final = """
CREATE TABLE IF NOT EXISTS heads (
    key TEXT PRIMARY KEY, epoch TEXT, attempt INT, phase TEXT, inbox TEXT, idle_takes INT,
    strikes INT, state_version INT, first_taken_at REAL, stored INT, previous TEXT, changed REAL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS states (key TEXT PRIMARY KEY, state BLOB);
CREATE TABLE IF NOT EXISTS calls (
    key TEXT, path TEXT, request_hash BLOB, carrier TEXT, starts INT, result BLOB,
    PRIMARY KEY (key, path)
);
CREATE TABLE IF NOT EXISTS runs (
    run TEXT PRIMARY KEY, generation TEXT, created_at REAL, cancelled INT, info TEXT
);
CREATE TABLE IF NOT EXISTS watermarks (
    run TEXT, generation TEXT, published INT, complete INT, PRIMARY KEY (run, generation)
);
CREATE TABLE IF NOT EXISTS marks (
    run TEXT, generation TEXT, repeat INT, task_index INT,
    PRIMARY KEY (run, generation, repeat, task_index)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS totals (
    run TEXT, generation TEXT, shard TEXT, totals TEXT, PRIMARY KEY (run, generation, shard)
);
"""

_HEAD: Final = (
    "SELECT epoch, attempt, phase, inbox, idle_takes, strikes, state_version, first_taken_at,"
    " stored, previous FROM heads WHERE key = ?"
)
_PUT: Final = "REPLACE INTO heads VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_ENTRY: Final = "SELECT request_hash, carrier, starts, result FROM calls WHERE key = ? AND path = ?"
_PUT_ENTRY: Final = (
    "INSERT INTO calls VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET request_hash ="
    " excluded.request_hash, carrier = excluded.carrier, starts = excluded.starts,"
    " result = excluded.result"
)
_ENTRIES: Final = "SELECT path, request_hash, carrier, starts, result FROM calls WHERE key = ?"
_CALLS: Final = (
    "SELECT path, request_hash, carrier, starts, result IS NOT NULL FROM calls WHERE key = ?"
)


@dataclass(slots=True)
class _Live:
    """A record without its results."""

    head: Head
    open: dict[str, Entry] = field(default_factory=dict)
    """Calls without a result."""
    done: set[str] = field(default_factory=set)


@dataclass(slots=True)
class _Claims:
    """Calls without a result that are not written, of one attempt, by path."""

    epoch: str
    open: dict[str, Entry] = field(default_factory=dict)


class SqliteTable:
    """`rules.Table` in a database; whoever calls holds a transaction, and ends it with `write`."""

    def __init__(self, db: Any) -> None:
        self._db = db
        self._execute = db.execute
        self._put = db.cursor().executemany
        self._live: dict[str, _Live] = {}
        self._heads: set[str] = set()
        """Whose heads are to be written; so are these calls, by record and path, and states."""
        self._calls: dict[str, dict[str, Entry]] = {}
        self._states: dict[str, bytes] = {}
        self._claims: dict[str, _Claims] = {}
        """What is nowhere else, and so stays whatever is forgotten."""

    def forget(self) -> None:
        """What is in memory may not be so: a transaction was undone, or somebody else wrote."""
        for kept in (self._live, self._heads, self._calls, self._states):
            kept.clear()

    def write(self) -> None:
        """Into the tables, what has changed."""
        if self._heads:
            heads = [_row(key, self._live[key].head) for key in self._heads]
            self._put(_PUT, heads)
            self._heads.clear()
        if self._calls:
            each = [(key, path, e) for key, es in self._calls.items() for path, e in es.items()]
            calls = [(k, p, e.request_hash, e.carrier, e.starts, e.result) for k, p, e in each]
            self._put(_PUT_ENTRY, calls)
            self._calls.clear()
        if self._states:
            self._put("REPLACE INTO states VALUES (?, ?)", self._states.items())
            self._states.clear()

    def head(self, key: str) -> Head | None:
        live = self._live.get(key)
        if live is not None:
            return live.head
        row = self._execute(_HEAD, (key,)).fetchone()
        if row is None:
            return None
        epoch, attempt, phase, inbox, idle_takes, strikes, version, first, stored, previous = row
        head = Head(
            epoch=epoch,
            attempt=attempt,
            phase=phase,
            inbox=inbox,
            idle_takes=idle_takes,
            strikes=strikes,
            state_version=version,
            first_taken_at=first,
            stored=stored,
            previous=previous,
        )
        return head if phase == "committed" else self._load(key, head).head

    def _load(self, key: str, head: Head) -> _Live:
        """What is stored of the record's calls, too: how many they are now is nowhere else."""
        live = self._live[key] = _Live(head)
        for path, request_hash, carrier, starts, finished in self._execute(_CALLS, (key,)):
            if finished:
                live.done.add(path)
            else:
                live.open[path] = Entry(request_hash, carrier, starts)
        if (claims := self._claims.get(key)) is not None and claims.epoch == head.epoch:
            live.open |= {path: e for path, e in claims.open.items() if path not in live.done}
        stored = len(live.done)
        idle_takes = head.idle_takes if stored <= head.stored else 0  # see `progress`
        live.head = replace(head, stored=stored, idle_takes=idle_takes)
        return live

    def put(self, key: str, head: Head) -> None:
        live = self._live.get(key)
        if live is None:  # whoever puts has asked for the head: nothing is stored of this record
            self._live[key] = _Live(head)
            self._claims.pop(key, None)
        else:
            live.head = head
        self._heads.add(key)

    def progress(self, key: str, head: Head) -> None:
        self._live[key].head = head  # not written: more calls are stored than its row counts

    def state(self, key: str) -> bytes:
        changed = self._states.get(key)
        if changed is not None:
            return changed
        row = self._execute("SELECT state FROM states WHERE key = ?", (key,)).fetchone()
        return b"" if row is None else bytes(row[0])

    def put_state(self, key: str, state: bytes) -> None:
        self._states[key] = state

    def entry(self, key: str, path: str) -> Entry | None:
        live = self._live.get(key)
        if live is not None and path not in live.done:
            return live.open.get(path)
        self._write_calls_of(key)
        row = self._execute(_ENTRY, (key, path)).fetchone()
        return None if row is None else Entry(*row)

    def put_entry(self, key: str, path: str, entry: Entry) -> None:
        self._calls.setdefault(key, {})[path] = entry
        live = self._live[key]  # whoever puts has asked for the head
        if entry.result is None:
            live.open[path] = entry
        else:
            live.open.pop(path, None)
            live.done.add(path)
            if (claims := self._claims.get(key)) is not None:
                claims.open.pop(path, None)

    def put_claim(self, key: str, path: str, entry: Entry) -> None:
        live = self._live[key]
        live.open[path] = entry
        claims = self._claims.get(key)
        if claims is None:
            claims = self._claims[key] = _Claims(live.head.epoch)
        claims.open[path] = entry

    def entries(self, key: str) -> Mapping[str, Entry]:
        live = self._live.get(key)
        if live is not None and not live.done:
            return dict(live.open)
        self._write_calls_of(key)
        return {path: Entry(*row) for path, *row in self._execute(_ENTRIES, (key,))}

    def _write_calls_of(self, key: str) -> None:
        if key in self._calls:
            self.write()

    def clear(self, key: str) -> None:
        self._drop_from_memory(key)
        self._execute("DELETE FROM calls WHERE key = ?", (key,))
        self._execute("DELETE FROM states WHERE key = ?", (key,))

    def drop(self, key: str) -> None:
        self.clear(key)
        self._execute("DELETE FROM heads WHERE key = ?", (key,))

    def bury(self, keys: Sequence[str]) -> None:
        pairs = [(key, key + VERIFY) for key in keys]
        stateful = [pair for pair in pairs if any(map(self._may_have_state, pair))]
        for pair in pairs:
            for key in pair:
                self._drop_from_memory(key)
        self._db.executemany("DELETE FROM calls WHERE key IN (?, ?)", pairs)
        self._db.executemany("DELETE FROM states WHERE key IN (?, ?)", stateful)
        self._db.executemany("DELETE FROM heads WHERE key = ?", [(key,) for _, key in pairs])
        self._db.executemany(_PUT, [_row(key, TOMBSTONE) for key in keys])

    def _may_have_state(self, key: str) -> bool:
        live = self._live.get(key)
        return live is None or live.head.state_version > 0

    def _drop_from_memory(self, key: str) -> None:
        self._live.pop(key, None)
        self._heads.discard(key)
        self._calls.pop(key, None)
        self._states.pop(key, None)
        self._claims.pop(key, None)

    def expire(self, keep_s: float) -> None:
        """Forget what has not changed for `keep_s`."""
        self.write()
        old = "SELECT key FROM heads WHERE changed < ?"
        for (key,) in self._execute(old, (time.time() - keep_s,)).fetchall():
            self.drop(key)


def _row(key: str, h: Head) -> tuple[object, ...]:
    counts = (h.idle_takes, h.strikes, h.state_version, h.first_taken_at, h.stored, h.previous)
    return (key, h.epoch, h.attempt, h.phase, h.inbox, *counts, time.time())
