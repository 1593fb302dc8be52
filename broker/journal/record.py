"""A rollout's record as memory and SQLite keep it, and the rules of `begin` and `finish`.

The rules are pure functions of what is stored and what is asked; `rules.py` reads and writes
around them. `redis.py` states the same rules in Lua; one contract test holds for all.
"""

from collections.abc import Callable
from typing import Final, Literal

import msgspec
from msgspec.structs import replace

from broker.journal.base import (
    Begun,
    Busy,
    CallRef,
    Duplicate,
    Finished,
    Found,
    Go,
    Gone,
    Lost,
    Mismatch,
)

Phase = Literal["run", "ended", "committed"]

#: A verifier's own record stands under the rollout's key with this at its end.
VERIFY: Final = "/verify"


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """All of a record but its calls and its state's bytes."""

    epoch: str
    attempt: int = 1
    phase: Phase = "run"
    inbox: str = ""
    idle_takes: int = 0
    strikes: int = 0
    state_version: int = 0
    """0 means that there is no state yet."""
    first_taken_at: float = 0.0
    """0 until the attempt is first taken."""
    stored: int = 0
    """How many calls are finished."""
    previous: str = ""
    """The epoch that `restart` ended."""


TOMBSTONE: Final = Head(epoch="", phase="committed")


class Entry(msgspec.Struct, frozen=True):
    """One call: claimed (carrier set), finished (result set), or neither after an upload."""

    request_hash: bytes
    carrier: str = ""
    """`CallRef.claim`: the carrier, and its executor while one has it in hand."""
    starts: int = 0
    result: bytes | None = None


def decide_begin(
    head: Head | None,
    entry: Entry | None,
    call: CallRef,
    force: bool,
    alive: Callable[[str], bool],
) -> Begun | Entry:
    """What `Journal.begin` answers; an Entry is the claim to store before answering Go."""
    if head is None:
        return Lost()
    if head.epoch != call.epoch:  # a tombstone has none
        return Gone()
    same = entry is None or entry.request_hash == call.request_hash
    if entry is not None and entry.result is not None and same:
        return Found(entry.result, head.inbox)
    if head.stored < call.held:
        return Lost()
    if not same:
        return Mismatch(head.inbox)
    if entry is None:
        return Entry(call.request_hash, call.claim, 1)
    carrier, _, executor = entry.carrier.partition("@")
    if executor not in {"", call.executor} and alive(executor) and not force:
        return Busy()
    if not executor and carrier not in {"", call.carrier} and not force:
        return Duplicate()
    return replace(entry, carrier=call.claim, starts=entry.starts + 1)


def is_claimed(entry: Entry, alive: Callable[[str], bool]) -> bool:
    """Whether an executor that lives has it in hand, or it waits on a ladder."""
    executor = entry.carrier.partition("@")[2]
    return entry.carrier != "" and (not executor or alive(executor))


def decide_finish(
    head: Head | None, entry: Entry | None, call: CallRef, version: int | None
) -> Finished | Gone | Lost | None:
    """What `Journal.finish` answers; None means that this result wins and is to be stored."""
    if head is None:
        return Lost()
    if head.epoch != call.epoch:
        return Gone()
    same = entry is None or entry.request_hash == call.request_hash
    if entry is not None and entry.result is not None and same:
        return Finished(entry.result, False, head.inbox)
    if head.stored < call.held:
        return Lost()
    if not same or version not in {None, head.state_version}:
        return Gone()
    return None


def go(entry: Entry, state: bytes, state_version: int) -> Go:
    """The answer to a claim that was stored."""
    return Go(entry.starts, state, state_version)
