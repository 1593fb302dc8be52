"""The journal in one SQLite file: for embedded runs, which outlive their process this way.

All operations of one turn of the event loop are one transaction: group commit. An operation that
returned survives `kill -9` of the process; a power cut may take the last moments, which owners
notice as a lost journal.

Transactions run on the event loop: they only copy into the page cache, some 10 us a statement,
where a thread would have to wait for the GIL after each. What waits for the disk, the checkpoint,
runs in a thread.
"""

import asyncio
import contextlib
import logging
import sqlite3
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar, TypeVarTuple

from broker.errors import JournalUnavailable, Unreachable
from broker.journal.base import LEASE_S
from broker.journal.local import LocalJournal
from broker.journal.runs import RunInfo, RunProgress, Totals
from broker.journal.sqlite_table import TABLES, SqliteTable
from broker.journal.totals import (
    add_totals,
    bitmap,
    pack_info,
    pack_totals,
    unpack_info,
    unpack_totals,
)

log = logging.getLogger(__name__)
T = TypeVar("T")
Ts = TypeVarTuple("Ts")

#: What has not changed for this long is forgotten, looked after this often.
KEEP_S: Final = 7 * 86400.0
_EXPIRE_EVERY_S: Final = 3600.0
#: Of the tables; a file of another version is refused.
_VERSION: Final = 1
#: The write-ahead log is copied into the file after so many changed rows.
_CHECKPOINT_ROWS: Final = 5000
#: Another process that writes is waited for, looking this often.
_BUSY_S: Final = 10.0
_BUSY_RETRY_S: Final = 0.005
#: `is_cancelled` remembers an answer for this long.
_CANCELLED_S: Final = 2.0

_WATERMARK: Final = (
    "INSERT INTO watermarks VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
    " published = excluded.published, complete = excluded.complete"
    " WHERE excluded.published >= published"
)
_REGISTER: Final = (
    "INSERT INTO runs VALUES (?, ?, ?, 0, ?) ON CONFLICT DO UPDATE SET"
    " generation = excluded.generation, created_at = excluded.created_at, info = excluded.info,"
    " cancelled = CASE WHEN generation = excluded.generation THEN cancelled ELSE 0 END"
    " WHERE generation = excluded.generation OR created_at <= excluded.created_at"
)


_Job = tuple[Callable[..., Any], tuple[Any, ...], asyncio.Future[Any]]


class Database:
    """One file: `do` returns when the operation's transaction is committed."""

    def __init__(self, path: Path) -> None:
        self.db = _connect(path)
        self._execute = self.db.cursor().execute
        self._pending: list[_Job] = []
        self.doubtful: Callable[[], None] = lambda: None
        """Called when what was read earlier may no longer be so: a rollback, another writer."""
        self.write: Callable[[], None] = lambda: None
        """Called before each commit: what was only noted down so far belongs to it."""
        self._data_version = 0
        self._busy_since: float | None = None
        self._checkpointed = 0
        self._checkpoint: asyncio.Task[None] | None = None
        self._closed = False

    def do(self, operation: Callable[[*Ts], T], *args: *Ts) -> asyncio.Future[T]:
        """Run it in the next transaction. A cancelled caller's operation still happens."""
        if self._closed:
            raise JournalUnavailable("the journal is closed")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        if not self._pending and self._checkpoint is None:
            loop.call_soon(self._flush)
        self._pending.append((operation, args, future))
        return future

    def _flush(self) -> None:
        """Commit what waits; later, where another process is writing."""
        loop = asyncio.get_running_loop()
        try:
            self._execute("BEGIN IMMEDIATE")
        except sqlite3.Error as e:
            since = self._busy_since = self._busy_since or loop.time()
            if e.sqlite_errorcode == sqlite3.SQLITE_BUSY and loop.time() - since < _BUSY_S:
                loop.call_later(_BUSY_RETRY_S, self._flush)
                return
        self._busy_since = None
        jobs, self._pending = self._pending, []
        _settle(jobs, self._commit(jobs))
        if self.db.total_changes - self._checkpointed > _CHECKPOINT_ROWS and not self._closed:
            self._checkpointed = self.db.total_changes
            self._checkpoint = loop.create_task(self._copy_log())

    def _commit(self, jobs: Sequence[_Job]) -> list[Any]:
        """What each returned, or the exception that it raised."""
        try:
            if not self.db.in_transaction:
                self._execute("BEGIN IMMEDIATE")
            self._look_for_others()
            results = [operation(*args) for operation, args, _ in jobs]
            self.write()
            self._execute("COMMIT")
        except Exception as e:
            with contextlib.suppress(sqlite3.Error):
                self._execute("ROLLBACK")
            self.doubtful()
            if len(jobs) > 1:  # only the one that fails shall fail
                return [result for one in jobs for result in self._commit([one])]
            return [_translated(e)]
        return results

    def _look_for_others(self) -> None:
        """Whether another connection has written since we last did."""
        (version,) = self._execute("PRAGMA data_version").fetchone()
        if version != self._data_version:
            self._data_version = version
            self.doubtful()

    async def _copy_log(self) -> None:
        """Into the file, which waits for the disk; what comes meanwhile waits too."""
        try:
            copy = self.db.execute
            await asyncio.to_thread(lambda: copy("PRAGMA wal_checkpoint(PASSIVE)").fetchall())
        except sqlite3.Error as e:  # nothing is lost: the log goes on growing until the next one
            log.warning("journal not copied", extra={"error": str(e)})
        finally:
            self._checkpoint = None
            if self._pending:
                self._flush()

    async def close(self) -> None:
        """Commit what was asked for, then let go of the file."""
        if self._closed:
            return
        self._closed = True
        if self._checkpoint is not None:
            await asyncio.wait([self._checkpoint])
        while self._pending:
            await asyncio.wait([self._pending[-1][-1]])
        await asyncio.to_thread(self.db.close)


def _settle(jobs: Sequence[_Job], outcomes: Sequence[Any]) -> None:
    for (_, _, future), outcome in zip(jobs, outcomes, strict=True):
        if future.done():
            continue
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)


def _translated(error: Exception) -> Exception:
    return JournalUnavailable(f"SQLite: {error}") if isinstance(error, sqlite3.Error) else error


def _connect(path: Path) -> sqlite3.Connection:
    try:
        db = sqlite3.connect(path, timeout=10.0, isolation_level=None, check_same_thread=False)
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version not in {0, _VERSION}:
            db.close()
            raise Unreachable(f"{path} is a journal of another version of Warren ({version})")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute("PRAGMA secure_delete = OFF")  # Debian overwrites whatever is deleted
        db.execute("PRAGMA wal_autocheckpoint = 0")  # see Database._copy_log
        db.executescript(TABLES)
        db.execute(f"PRAGMA user_version = {_VERSION}")
        db.execute("PRAGMA busy_timeout = 0")  # see Database._flush
    except sqlite3.Error as e:
        raise Unreachable(f"cannot open the journal {path}: {e}; is its directory there?") from e
    return db


_VOID_CLAIMS: Final = "UPDATE calls SET carrier = '' WHERE carrier <> ''"


class SqliteJournal(LocalJournal):
    """`Journal` in a file; one process at a time."""

    def __init__(self, database: Database, *, lease_s: float, keep_s: float) -> None:
        self.database = database
        self._table = SqliteTable(database.db)
        database.doubtful = self._table.forget
        database.write = self._table.write
        self._keep_s = keep_s
        self._expire_at = 0.0
        super().__init__(self._table, lease_s=lease_s)

    @classmethod
    async def open(
        cls, path: Path | str, *, lease_s: float = LEASE_S, keep_s: float = KEEP_S
    ) -> "SqliteJournal":
        """Make the file if it is not there. Raises Unreachable where that can't be done.

        Claims of an earlier process are void: the messages they were made for died with its
        broker, or come again and lose to whoever claims first.
        """
        database = await asyncio.to_thread(Database, Path(path))
        await database.do(lambda: database.db.execute(_VOID_CLAIMS))
        return cls(database, lease_s=lease_s, keep_s=keep_s)

    def _do(self, operation: Callable[[*Ts], T], *args: *Ts) -> Awaitable[T]:
        if time.monotonic() >= self._expire_at:
            return self._expire_then(operation, *args)
        return self.database.do(operation, *args)

    async def _expire_then(self, operation: Callable[[*Ts], T], *args: *Ts) -> T:
        self._expire_at = time.monotonic() + min(_EXPIRE_EVERY_S, self._keep_s)
        await self.database.do(self._table.expire, self._keep_s)
        return await self.database.do(operation, *args)

    async def close(self) -> None:
        """Commit what was asked for, then let go of the file."""
        await self.database.close()


class SqliteRuns:
    """`Runs` in the journal's file; other processes may read it and cancel."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._db = database.db
        self._cancelled: dict[str, tuple[float, bool]] = {}

    @classmethod
    async def open(cls, path: Path | str) -> "SqliteRuns":
        """Make the file if it is not there. Raises Unreachable where that can't be done."""
        return cls(await asyncio.to_thread(Database, Path(path)))

    async def _write(self, *statements: tuple[str, tuple[object, ...]]) -> None:
        await self._database.do(lambda: [self._db.execute(*each) for each in statements])

    async def register(self, info: RunInfo) -> None:
        row = (info.run, info.generation, info.created_at, pack_info(info))
        await self._write((_REGISTER, row))

    async def published(self, run: str, generation: str, count: int, complete: bool) -> None:
        await self._write((_WATERMARK, (run, generation, count, complete)))

    async def mark(
        self,
        run: str,
        generation: str,
        shard: str,
        rows: Sequence[tuple[int, int]],
        totals: Totals,
    ) -> None:
        marks = [(run, generation, repeat, index) for index, repeat in rows]
        total = (run, generation, shard, pack_totals(totals))

        def write() -> None:
            self._db.executemany("INSERT OR IGNORE INTO marks VALUES (?, ?, ?, ?)", marks)
            self._db.execute("REPLACE INTO totals VALUES (?, ?, ?, ?)", total)

        await self._database.do(write)

    async def committed(self, run: str, generation: str, repeat: int) -> bytes:
        sql = "SELECT task_index FROM marks WHERE run = ? AND generation = ? AND repeat = ?"
        rows = (run, generation, repeat)
        return await self._database.do(lambda: bitmap(i for (i,) in self._db.execute(sql, rows)))

    async def progress(self, run: str) -> RunProgress | None:
        return await self._database.do(self._progress, run)

    def _progress(self, run: str) -> RunProgress | None:
        row = self._db.execute("SELECT info, cancelled FROM runs WHERE run = ?", (run,)).fetchone()
        if row is None:
            return None
        info = unpack_info(row[0])
        published, complete = self._of(info, "SELECT published, complete FROM watermarks") or (0, 0)
        (committed,) = self._of(info, "SELECT count(*) FROM marks")
        sql = "SELECT totals FROM totals WHERE run = ? AND generation = ?"
        totals = self._db.execute(sql, (run, info.generation)).fetchall()
        return RunProgress(
            info=info,
            published=published,
            complete=bool(complete),
            committed=committed,
            cancelled=bool(row[1]),
            totals=add_totals(unpack_totals(text) for (text,) in totals),
        )

    def _of(self, info: RunInfo, select: str) -> Any:
        sql = f"{select} WHERE run = ? AND generation = ?"
        return self._db.execute(sql, (info.run, info.generation)).fetchone()

    async def list(self) -> Sequence[RunProgress]:
        return await self._database.do(self._list)

    def _list(self) -> Sequence[RunProgress]:
        names = self._db.execute("SELECT run FROM runs ORDER BY created_at DESC").fetchall()
        standing = [self._progress(run) for (run,) in names]
        return [progress for progress in standing if progress is not None]

    async def cancel(self, run: str) -> bool:
        self._cancelled.pop(run, None)
        sql = "UPDATE runs SET cancelled = 1 WHERE run = ?"
        return await self._database.do(lambda: self._db.execute(sql, (run,)).rowcount > 0)

    async def is_cancelled(self, run: str) -> bool:
        asked_at, answer = self._cancelled.get(run, (float("-inf"), False))
        if time.monotonic() - asked_at < _CANCELLED_S:
            return answer
        sql = "SELECT 1 FROM runs WHERE run = ? AND cancelled"
        found = await self._database.do(lambda: self._db.execute(sql, (run,)).fetchone())
        self._cancelled[run] = (time.monotonic(), found is not None)
        return found is not None

    async def forget(self, run: str) -> None:
        self._cancelled.pop(run, None)
        tables = ("runs", "watermarks", "marks", "totals")
        await self._write(*((f"DELETE FROM {table} WHERE run = ?", (run,)) for table in tables))

    async def close(self) -> None:
        """Commit what was asked for, then let go of the file."""
        await self._database.close()
