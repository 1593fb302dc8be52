"""Journals and run records of every kind for tests, and calls to put into them."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, Literal

from redis.asyncio import Redis

from broker.journal.base import CallRef, Finished, Go, Journal, Run, Stored, Upload
from broker.journal.memory import MemoryJournal, MemoryRuns
from broker.journal.redis import RedisJournal
from broker.journal.redis_runs import RedisRuns
from broker.journal.runs import Runs
from broker.journal.sqlite import SqliteJournal, SqliteRuns

Kind = Literal["memory", "sqlite", "redis"]
KINDS: Final[tuple[Kind, ...]] = ("memory", "sqlite", "redis")

#: Leases in tests: longer than a busy machine may sleep.
LEASE_S: Final = 30.0
#: A result that is no text.
ARRAYS: Final = bytes(range(256)) * 64


@asynccontextmanager
async def opened_journal(
    kind: Kind, folder: Path, redis_url: str, *, lease_s: float = LEASE_S, keep_s: float = 3600.0
) -> AsyncIterator[Journal]:
    """A journal of this kind; the same folder or URL is the same store."""
    journal: Journal
    match kind:
        case "memory":
            journal = MemoryJournal(lease_s=lease_s, keep_s=keep_s)
        case "sqlite":
            path = folder / "journal.sqlite"
            journal = await SqliteJournal.open(path, lease_s=lease_s, keep_s=keep_s)
        case "redis":
            journal = await RedisJournal.connect(
                redis_url, patience_s=10.0, lease_s=lease_s, keep_s=keep_s
            )
    try:
        yield journal
    finally:
        await journal.close()


async def listeners(url: str, inbox: str = "*", *, count: int = 1) -> None:
    """Wait until so many inboxes of these hear their replies from this Redis."""
    async with Redis.from_url(url) as redis:

        async def heard() -> bool:
            return len(await redis.pubsub_channels(f"warren:inbox:{inbox}")) == count

        await eventually(heard)


@asynccontextmanager
async def opened_runs(kind: Kind, folder: Path, redis_url: str) -> AsyncIterator[Runs]:
    """Run records of this kind; the same folder or URL is the same store."""
    runs: MemoryRuns | SqliteRuns | RedisRuns
    match kind:
        case "memory":
            runs = MemoryRuns()
        case "sqlite":
            runs = await SqliteRuns.open(folder / "journal.sqlite")
        case "redis":
            runs = await RedisRuns.connect(redis_url, patience_s=10.0)
    try:
        yield runs
    finally:
        await runs.close()


def new_key() -> str:
    """A rollout that no other test knows."""
    return f"run-{uuid.uuid4().hex}.g/0/0"


def call(
    run: Run,
    rollout: str,
    path: str = "0",
    *,
    carrier: str = "carrier",
    request: bytes = b"request",
    held: int = 0,
    executor: str = "",
) -> CallRef:
    """A call of a rollout that was taken."""
    return CallRef(
        rollout=rollout,
        epoch=run.epoch,
        path=path,
        carrier=carrier,
        request_hash=request,
        held=held,
        executor=executor,
    )


async def taken(journal: Journal, rollout: str, inbox: str = "inbox", counts: bool = True) -> Run:
    """Take a rollout that can be taken."""
    run = await journal.take(rollout, inbox, counts=counts)
    assert isinstance(run, Run), run
    return run


async def eventually(condition: Callable[[], Awaitable[bool]], within_s: float = 10.0) -> None:
    """Ask until it holds."""
    async with asyncio.timeout(within_s):
        while True:
            if await condition():
                return
            await asyncio.sleep(0.02)


async def finished(journal: Journal, ref: CallRef, result: bytes = b"result") -> Finished:
    """Claim and finish a call that can be."""
    assert isinstance(await journal.begin(ref), Go)
    done = await journal.finish(ref, result)
    assert isinstance(done, Finished), done
    return done


def uploaded(run: Run, key: str, *results: str, inbox: str = "inbox") -> Upload:
    """What its owner has of it: these paths, each with its own name as the result."""
    return Upload(
        rollout=key,
        epoch=run.epoch,
        attempt=run.attempt,
        inbox=inbox,
        results={path: Stored(b"request", path.encode()) for path in results},
        first_taken_at=run.first_taken_at,
    )
