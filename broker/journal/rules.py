"""The journal's operations over any table of records: what memory and SQLite share.

`Rules` is synchronous and not thread-safe: whoever calls it makes each call one atomic operation.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from msgspec.structs import replace

from broker.journal.base import (
    Begun,
    CallRef,
    Committed,
    Finished,
    Gone,
    Lost,
    Overview,
    Owned,
    Run,
    Stored,
    Taken,
    Upload,
)
from broker.journal.record import (
    VERIFY,
    Entry,
    Head,
    decide_begin,
    decide_finish,
    go,
    is_claimed,
)
from broker.names import new_id


class Table(Protocol):
    """Where records are kept."""

    def head(self, key: str) -> Head | None: ...
    def put(self, key: str, head: Head) -> None: ...

    def progress(self, key: str, head: Head) -> None:
        """Put a head of which only `stored` grew, by a call that is put too, which ends its
        idle takes: how many calls are stored, the calls themselves say."""
        ...

    def state(self, key: str) -> bytes: ...
    def put_state(self, key: str, state: bytes) -> None: ...
    def entry(self, key: str, path: str) -> Entry | None: ...
    def put_entry(self, key: str, path: str, entry: Entry) -> None: ...

    def put_claim(self, key: str, path: str, entry: Entry) -> None:
        """Put an entry that need not outlast this process (`CallRef.lasting`)."""
        ...

    def entries(self, key: str) -> Mapping[str, Entry]: ...

    def clear(self, key: str) -> None:
        """Forget calls and state, keep the head."""
        ...

    def drop(self, key: str) -> None:
        """Forget the record."""
        ...

    def bury(self, keys: Sequence[str]) -> None:
        """Leave a tombstone each; drop their verifiers' records."""
        ...


class Rules:
    """See `base.Journal` for what each operation means."""

    def __init__(self, table: Table, alive: Callable[[str], bool]) -> None:
        self._table = table
        self._alive = alive

    def _head(self, key: str) -> Head | None:
        head = self._table.head(key)
        if head is None and key.endswith(VERIFY):  # forgotten with a rollout that is committed
            parent = self._table.head(key.removesuffix(VERIFY))
            return parent if parent is not None and parent.phase == "committed" else None
        return head

    def _owned(self, key: str, epoch: str) -> Head | None:
        head = self._head(key)
        return head if head is not None and head.epoch == epoch else None

    def _state(self, key: str, head: Head) -> bytes:
        return self._table.state(key) if head.state_version else b""

    def take(self, key: str, inbox: str, counts: bool, uncounted: int) -> Taken:
        head = self._head(key) or Head(epoch=new_id(), idle_takes=uncounted)
        if head.phase == "committed":
            return Committed()
        if self._another_lives(head, inbox):
            return Owned(head.inbox)
        head = replace(
            head,
            inbox=inbox,
            idle_takes=head.idle_takes + counts,
            first_taken_at=head.first_taken_at or time.time(),
        )
        self._table.put(key, head)
        return Run(
            epoch=head.epoch,
            attempt=head.attempt,
            results=_finished(self._table.entries(key)),
            state=self._state(key, head),
            state_version=head.state_version,
            idle_takes=head.idle_takes,
            strikes=head.strikes,
            first_taken_at=head.first_taken_at,
            ended=head.phase == "ended",
        )

    def _another_lives(self, head: Head, inbox: str) -> bool:
        return head.inbox not in {"", inbox} and self._alive(head.inbox)

    def release(self, key: str, epoch: str, inbox: str) -> None:
        head = self._owned(key, epoch)
        if head is not None and head.inbox == inbox:
            idle_takes = max(0, head.idle_takes - 1)
            self._table.put(key, replace(head, inbox="", idle_takes=idle_takes))

    def begin(self, call: CallRef, force: bool) -> Begun:
        head = self._head(call.rollout)
        entry = self._table.entry(call.rollout, call.path)
        decision = decide_begin(head, entry, call, force, self._alive)
        if head is None or not isinstance(decision, Entry):
            return decision if not isinstance(decision, Entry) else Lost()
        self._claim(call, decision)
        return go(decision, self._state(call.rollout, head), head.state_version)

    def put_off(self, call: CallRef) -> None:
        entry = self._table.entry(call.rollout, call.path)
        if (
            entry is not None
            and entry.carrier == call.claim
            and self._owned(call.rollout, call.epoch)
        ):
            self._claim(call, replace(entry, carrier=call.carrier))

    def _claim(self, call: CallRef, entry: Entry) -> None:
        put = self._table.put_entry if call.lasting else self._table.put_claim
        put(call.rollout, call.path, entry)

    def finish(
        self, call: CallRef, result: bytes, state: bytes | None, state_version: int
    ) -> Finished | Gone | Lost:
        head = self._head(call.rollout)
        entry = self._table.entry(call.rollout, call.path)
        decision = decide_finish(head, entry, call, None if state is None else state_version)
        if head is None or decision is not None:
            return decision or Lost()
        starts = 0 if entry is None else entry.starts
        done = Entry(call.request_hash, "", starts, result)
        self._table.put_entry(call.rollout, call.path, done)
        head = replace(head, stored=head.stored + 1, idle_takes=0)
        if state is None:
            self._table.progress(call.rollout, head)
        else:
            self._table.put_state(call.rollout, state)
            self._table.put(call.rollout, replace(head, state_version=state_version + 1))
        return Finished(result, True, head.inbox)

    def keep_first(
        self, key: str, path: str, request_hash: bytes, result: bytes
    ) -> Stored | Committed:
        head = self._head(key) or Head(epoch=new_id())
        if head.phase == "committed":
            return Committed()
        entry = self._table.entry(key, path)
        if entry is not None and entry.result is not None:
            return Stored(entry.request_hash, entry.result)
        first_taken_at = head.first_taken_at or time.time()
        head = replace(head, stored=head.stored + 1, idle_takes=0, first_taken_at=first_taken_at)
        self._table.put(key, head)
        starts = 0 if entry is None else entry.starts
        self._table.put_entry(key, path, Entry(request_hash, "", starts, result))
        return Stored(request_hash, result)

    def look(self, key: str, epoch: str, paths: Sequence[str]) -> Overview | Gone | Lost:
        head = self._head(key)
        if head is None:
            return Lost()
        if head.epoch != epoch:
            return Gone()
        found = {p: e for p in paths if (e := self._table.entry(key, p)) is not None}
        return Overview(
            inbox=head.inbox,
            results=_finished(found),
            begun=frozenset(p for p, e in found.items() if e.carrier),
            claimed=frozenset(p for p, e in found.items() if is_claimed(e, self._alive)),
            state=self._state(key, head),
            state_version=head.state_version,
        )

    def result(self, key: str, epoch: str, path: str) -> bytes | None:
        entry = self._table.entry(key, path) if self._owned(key, epoch) else None
        return None if entry is None else entry.result

    def upload(self, upload: Upload) -> bool:
        key = upload.rollout
        head = self._head(key)
        if head is None:
            head = _restored(upload)
        if head.epoch != upload.epoch or self._another_lives(head, upload.inbox):
            return False
        entries = self._table.entries(key)
        known = _finished(entries)
        if any(upload.results.get(path, stored) != stored for path, stored in known.items()):
            return False
        missing = {path: s for path, s in upload.results.items() if path not in known}
        self._table.put(key, head)  # before its calls: tables learn of a record by its head
        for path, stored in missing.items():
            starts = entries[path].starts if path in entries else 0
            entry = Entry(stored.request_hash, "", starts, stored.result)
            self._table.put_entry(key, path, entry)
        for path, request_hash in upload.opened.items():
            if path not in entries and path not in missing:
                self._table.put_entry(key, path, Entry(request_hash, "", 1))
        head = replace(head, inbox=upload.inbox, stored=head.stored + len(missing))
        if upload.state_version > head.state_version:
            self._table.put_state(key, upload.state)
            head = replace(head, state_version=upload.state_version)
        self._table.put(key, head)
        return True

    def restart(self, key: str, epoch: str) -> int | None:
        head = self._head(key)
        if head is None:  # forgotten with its attempts: somebody has to go on
            head = Head(epoch=epoch)
        if head.previous == epoch and not head.first_taken_at:
            return head.attempt
        if head.epoch != epoch:
            return None
        self._table.clear(key)
        attempt = head.attempt + 1
        fresh = Head(epoch=new_id(), attempt=attempt, strikes=head.strikes, previous=epoch)
        self._table.put(key, fresh)
        return attempt

    def strike(self, key: str, epoch: str) -> int:
        head = self._head(key)
        if head is None or head.epoch != epoch:
            return 0 if head is None else head.strikes
        self._table.put(key, replace(head, strikes=head.strikes + 1))
        return head.strikes + 1

    def ended(self, key: str, epoch: str) -> None:
        head = self._owned(key, epoch)
        if head is not None:
            self._table.put(key, replace(head, phase="ended"))

    def committed(self, keys: Sequence[str]) -> None:
        self._table.bury(keys)

    def forget(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._table.drop(key)
            self._table.drop(key + VERIFY)


def _finished(entries: Mapping[str, Entry]) -> dict[str, Stored]:
    return {
        path: Stored(entry.request_hash, entry.result)
        for path, entry in entries.items()
        if entry.result is not None
    }


def _restored(upload: Upload) -> Head:
    return Head(
        epoch=upload.epoch,
        attempt=upload.attempt,
        first_taken_at=upload.first_taken_at or time.time(),
    )
