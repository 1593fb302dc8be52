"""The journal in Redis: for workers on many machines. One hash per rollout, one script per family.

All operations of one turn of the event loop leave in one flush. While Redis is away (lost, loading,
read-only, stalled) every operation is tried again for `patience_s`; each may be repeated safely
when its reply was lost. Redis must not evict: `maxmemory-policy noeviction`.
"""

import asyncio
import hashlib
import random
import secrets
import time
from collections.abc import Iterable, Sequence
from importlib import resources
from typing import Any, Final

import msgpack
from redis import asyncio as redis
from redis import exceptions
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from broker.errors import JournalUnavailable, Unreachable
from broker.journal.base import (
    LEASE_S,
    Begun,
    CallRef,
    Committed,
    Duplicate,
    Finished,
    Found,
    Go,
    Gone,
    Lost,
    Mismatch,
    Overview,
    Owned,
    Run,
    RunInfo,
    RunProgress,
    Stored,
    Taken,
    Totals,
    Upload,
)
from broker.journal.record import VERIFY
from broker.journal.totals import add_totals, pack_info, pack_totals, unpack_info, unpack_totals
from broker.masking import mask_url

#: What has not changed for this long is forgotten.
KEEP_S: Final = 7 * 86400.0
#: An operation is tried again for this long before JournalUnavailable is raised.
PATIENCE_S: Final = 60.0
#: A connection that says nothing for this long is given up, and the operation tried again.
_SILENCE_S: Final = 5.0
#: Flushes under way; what comes meanwhile leaves together when one returns.
_FLUSHES: Final = 4
#: One script call marks or tombstones this many at most: Redis does nothing else meanwhile.
_CHUNK: Final = 2000
#: `is_cancelled` remembers an answer for this long.
_CANCELLED_S: Final = 2.0

_REFUSED: Final = (
    exceptions.AuthenticationError,
    exceptions.AuthenticationWrongNumberOfArgsError,
    exceptions.AuthorizationError,
    exceptions.NoPermissionError,
)
_AWAY: Final = (
    exceptions.ConnectionError,
    exceptions.TimeoutError,
    exceptions.ReadOnlyError,
    exceptions.OutOfMemoryError,
    exceptions.MasterDownError,
    exceptions.TryAgainError,
    TimeoutError,
)
#: How further errors begin that pass; inside scripts redis-py knows none of them by class.
_PASSING: Final = ("BUSY", "LOADING", "MASTERDOWN", "MISCONF", "OOM", "READONLY", "TRYAGAIN")

_CLOSED: Final = "the journal is closed"

_Sent = tuple[tuple[Any, ...], asyncio.Future[Any]]


class Script:
    """A Lua script with the name that Redis knows it by."""

    def __init__(self, file: str, package: str = "broker.journal") -> None:
        self.text = (resources.files(package) / "lua" / file).read_bytes()
        self.sha = hashlib.sha1(self.text, usedforsecurity=False).hexdigest()


class Client:
    """Commands to one Redis, flushed together, repeated until they are answered."""

    def __init__(self, url: str, patience_s: float) -> None:
        self.url = mask_url(url)
        self._patience_s = patience_s
        self._redis = redis.Redis.from_url(
            url,
            decode_responses=False,
            protocol=2,
            socket_timeout=_SILENCE_S,
            socket_connect_timeout=_SILENCE_S,
            retry=Retry(NoBackoff(), 0),  # `do` repeats, in one place
        )
        self._pending: list[_Sent] = []
        self._flushes: set[asyncio.Task[None]] = set()
        self._closed = False

    @classmethod
    async def connect(cls, url: str, patience_s: float) -> "Client":
        """Raises Unreachable where nobody answers or we are refused."""
        try:
            client = cls(url, patience_s)
        except ValueError as e:
            raise Unreachable(f"not a Redis URL: {mask_url(url)} (redis://host:6379/0)") from e
        try:
            await client._once(("PING",))
        except exceptions.RedisError as e:
            await client.close()
            raise client._unreachable(e) from e
        except BaseException:
            await client.close()
            raise
        return client

    async def do(self, *command: Any) -> Any:
        """The reply. Raises JournalUnavailable, or Unreachable where Redis refuses us."""
        deadline = time.monotonic() + self._patience_s
        delay_s = 0.05
        while True:
            try:
                async with asyncio.timeout(max(0.05, deadline - time.monotonic())):
                    return await self._once(command)
            except (exceptions.RedisError, TimeoutError) as e:
                if isinstance(e, _REFUSED):
                    raise self._unreachable(e) from e
                if not _passes(e):
                    raise
                if time.monotonic() + delay_s >= deadline:
                    raise JournalUnavailable(f"Redis at {self.url}: {_said(e)}") from e
            await asyncio.sleep(random.uniform(0.5, 1.0) * delay_s)
            delay_s = min(delay_s * 2, 2.0)

    async def run(self, script: Script, keys: Sequence[str], *args: Any) -> Any:
        """The script's reply; it is sent whole where Redis has forgotten it."""
        try:
            return await self.do("EVALSHA", script.sha, len(keys), *keys, *args)
        except exceptions.NoScriptError:
            return await self.do("EVAL", script.text, len(keys), *keys, *args)

    async def _once(self, command: tuple[Any, ...]) -> Any:
        if self._closed:
            raise JournalUnavailable(_CLOSED)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        if not self._pending:
            loop.call_soon(self._flush)
        self._pending.append((command, future))
        return await future

    def _flush(self) -> None:
        if not self._pending or len(self._flushes) >= _FLUSHES:
            return
        sent, self._pending = self._pending, []
        task = asyncio.get_running_loop().create_task(self._send(sent))
        self._flushes.add(task)
        task.add_done_callback(self._flushed)

    def _flushed(self, task: asyncio.Task[None]) -> None:
        self._flushes.discard(task)
        self._flush()

    async def _send(self, sent: Sequence[_Sent]) -> None:
        replies: Sequence[Any]
        try:
            pipeline = self._redis.pipeline(transaction=False)
            for command, _ in sent:
                pipeline.execute_command(*command)
            replies = await pipeline.execute(raise_on_error=False)
        except Exception as e:  # every waiter hears of it
            replies = [e] * len(sent)
        except BaseException:  # we were closed
            _settle(sent, [JournalUnavailable(_CLOSED)] * len(sent))
            raise
        _settle(sent, replies)

    def _unreachable(self, error: Exception) -> Unreachable:
        hint = (
            "check user and password in the URL"
            if isinstance(error, _REFUSED)
            else "is it running, and is this its address? (redis-cli -u URL ping)"
        )
        return Unreachable(f"cannot use Redis at {self.url}: {_said(error)}; {hint}")

    async def close(self) -> None:
        """Drop what was not answered yet and let go of the connections."""
        if self._closed:
            return
        self._closed = True
        for _, future in self._pending:
            future.set_exception(JournalUnavailable(_CLOSED))
        self._pending.clear()
        for task in self._flushes:
            task.cancel()
        if self._flushes:
            await asyncio.wait(self._flushes)
        await self._redis.aclose()


def _settle(sent: Sequence[_Sent], replies: Sequence[Any]) -> None:
    for (_, future), reply in zip(sent, replies, strict=True):
        if future.done():
            continue
        if isinstance(reply, Exception):
            future.set_exception(reply)
        else:
            future.set_result(reply)


def _passes(error: Exception) -> bool:
    return isinstance(error, _AWAY) or str(error).startswith(_PASSING)


def _said(error: Exception) -> str:
    return mask_url(str(error)) or "no answer"


def _record(rollout: str) -> str:
    """Braces keep a rollout and its verifier on one node of a cluster."""
    if rollout.endswith(VERIFY):
        return _record(rollout.removesuffix(VERIFY)) + VERIFY
    return f"warren:{{{rollout}}}"


def _records(rollout: str) -> list[str]:
    parent = [_record(rollout.removesuffix(VERIFY))] if rollout.endswith(VERIFY) else []
    return [_record(rollout), *parent]


class RedisJournal:
    """`Journal` in Redis, shared by all who connect."""

    def __init__(self, client: Client, *, lease_s: float, keep_s: float) -> None:
        self._client = client
        self._script = Script("journal.lua")
        self._lease_ms = round(lease_s * 1000)
        self._keep_ms = round(keep_s * 1000)

    @classmethod
    async def connect(
        cls,
        url: str,
        *,
        patience_s: float = PATIENCE_S,
        lease_s: float = LEASE_S,
        keep_s: float = KEEP_S,
    ) -> "RedisJournal":
        """Raises Unreachable where nobody answers there or we are refused."""
        return cls(await Client.connect(url, patience_s), lease_s=lease_s, keep_s=keep_s)

    async def _run(self, operation: str, rollout: str, *args: Any) -> Any:
        keys = _records(rollout)
        return await self._client.run(self._script, keys, operation, self._keep_ms, *args)

    async def take(self, rollout: str, inbox: str, *, counts: bool = True) -> Taken:
        fresh = secrets.token_hex(16)
        reply = await self._run("take", rollout, fresh, inbox, int(counts), repr(time.time()))
        match reply:
            case [b"owned", owner]:
                return Owned(owner.decode())
            case [b"run", fields]:
                return _as_run(fields)
        return Committed()

    async def release(self, rollout: str, epoch: str, inbox: str) -> None:
        await self._run("release", rollout, epoch, inbox)

    async def begin(self, call: CallRef, *, force: bool = False) -> Begun:
        reply = await self._run(
            "begin",
            call.rollout,
            call.epoch,
            call.path,
            call.request_hash,
            call.carrier,
            call.held,
            int(force),
        )
        match reply:
            case [b"go", starts, state, version]:
                return Go(starts, state, version)
            case [b"found", result, inbox]:
                return Found(result, inbox.decode())
            case [b"mismatch", inbox]:
                return Mismatch(inbox.decode())
            case [b"duplicate"]:
                return Duplicate()
        return _gone_or_lost(reply)

    async def finish(
        self, call: CallRef, result: bytes, *, state: bytes | None = None, state_version: int = 0
    ) -> Finished | Gone | Lost:
        new_state = ("", b"") if state is None else (state_version, state)
        reply = await self._run(
            "finish",
            call.rollout,
            call.epoch,
            call.path,
            call.request_hash,
            call.held,
            result,
            *new_state,
        )
        match reply:
            case [b"won", inbox]:
                return Finished(result, True, inbox.decode())
            case [b"known", inbox, winner]:
                return Finished(winner, False, inbox.decode())
        return _gone_or_lost(reply)

    async def look(self, rollout: str, epoch: str, paths: Sequence[str]) -> Overview | Gone | Lost:
        reply = await self._run("look", rollout, epoch, *paths)
        match reply:
            case [b"seen", inbox, state, version, calls]:
                results = {p.decode(): Stored(h, r) for p, h, r, _ in calls if r is not None}
                claimed = frozenset(p.decode() for p, _, _, carrier in calls if carrier)
                return Overview(inbox.decode(), results, claimed, state, version)
        return _gone_or_lost(reply)

    async def upload(self, upload: Upload) -> bool:
        results = (
            value
            for path, stored in upload.results.items()
            for value in (path, stored.request_hash, stored.result)
        )
        reply = await self._run(
            "upload",
            upload.rollout,
            upload.epoch,
            upload.inbox,
            upload.attempt,
            repr(upload.first_taken_at or time.time()),
            upload.state_version,
            upload.state,
            len(upload.opened),
            *(word for pair in upload.opened.items() for word in pair),
            *results,
        )
        return bool(reply)

    async def restart(self, rollout: str, epoch: str) -> int | None:
        attempt: int | None = await self._run("restart", rollout, epoch, secrets.token_hex(16))
        return attempt

    async def strike(self, rollout: str, epoch: str) -> int:
        return int(await self._run("strike", rollout, epoch))

    async def ended(self, rollout: str, epoch: str) -> None:
        await self._run("ended", rollout, epoch)

    async def committed(self, rollouts: Sequence[str]) -> None:
        for some in _chunks(rollouts):
            keys = [_record(rollout) for rollout in some]
            await self._client.run(self._script, keys, "committed", self._keep_ms)

    async def renew_lease(self, inbox: str) -> None:
        await self._client.do("SET", f"warren:lease:{inbox}", b"", "PX", self._lease_ms)

    async def end_lease(self, inbox: str) -> None:
        await self._client.do("DEL", f"warren:lease:{inbox}")

    async def close(self) -> None:
        """Let go of the connections."""
        await self._client.close()


def _gone_or_lost(reply: Sequence[bytes]) -> Gone | Lost:
    return Lost() if reply[0] == b"lost" else Gone()


def _as_run(reply: Sequence[bytes]) -> Run:
    fields = dict(zip(reply[::2], reply[1::2], strict=True))
    results = {
        name[7:].decode(): Stored(fields[b"hash:" + name[7:]], value)
        for name, value in fields.items()
        if name.startswith(b"result:")
    }
    return Run(
        epoch=fields[b"epoch"].decode(),
        attempt=int(fields[b"attempt"]),
        results=results,
        state=fields.get(b"state", b""),
        state_version=int(fields.get(b"state_version", 0)),
        idle_takes=int(fields.get(b"idle_takes", 0)),
        strikes=int(fields.get(b"strikes", 0)),
        first_taken_at=float(fields[b"first_taken_at"]),
        ended=fields[b"phase"] == b"ended",
    )


def _chunks(items: Sequence[Any]) -> Iterable[Sequence[Any]]:
    return (items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK))


class RedisRuns:
    """`Runs` in Redis, shared by all who connect."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._script = Script("runs.lua")
        self._cancelled: dict[str, tuple[float, bool]] = {}

    @classmethod
    async def connect(cls, url: str, *, patience_s: float = PATIENCE_S) -> "RedisRuns":
        """Raises Unreachable where nobody answers there or we are refused."""
        return cls(await Client.connect(url, patience_s))

    async def _run(self, operation: str, run: str, *args: Any) -> Any:
        keys = (_run_key(run), "warren:runs")
        return await self._client.run(self._script, keys, operation, *args)

    async def register(self, info: RunInfo) -> None:
        created_at = repr(info.created_at)
        await self._run(
            "register", info.run, info.run, info.generation, created_at, pack_info(info)
        )

    async def published(self, run: str, generation: str, count: int, complete: bool) -> None:
        await self._run("published", run, generation, count, int(complete))

    async def mark(
        self,
        run: str,
        generation: str,
        shard: str,
        rows: Sequence[tuple[int, int]],
        totals: Totals,
    ) -> None:
        text = pack_totals(totals)
        for some in _chunks(rows) if rows else ((),):
            flat = msgpack.packb([number for row in some for number in row])
            await self._run("mark", run, generation, shard, text, flat)

    async def committed(self, run: str, generation: str, repeat: int) -> bytes:
        bits: bytes | None = await self._client.do("GET", f"{_run_key(run)}:{generation}:{repeat}")
        return bits or b""

    async def progress(self, run: str) -> RunProgress | None:
        reply = await self._run("progress", run)
        return None if reply is None else _as_progress(reply)

    async def list(self) -> Sequence[RunProgress]:
        return [_as_progress(reply) for reply in await self._run("list", "")]

    async def cancel(self, run: str) -> bool:
        self._cancelled.pop(run, None)
        return bool(await self._run("cancel", run))

    async def is_cancelled(self, run: str) -> bool:
        asked_at, answer = self._cancelled.get(run, (float("-inf"), False))
        if time.monotonic() - asked_at < _CANCELLED_S:
            return answer
        answer = bool(await self._client.do("HGET", _run_key(run), "cancelled"))
        self._cancelled[run] = (time.monotonic(), answer)
        return answer

    async def forget(self, run: str) -> None:
        self._cancelled.pop(run, None)
        await self._run("forget", run, run)

    async def close(self) -> None:
        """Let go of the connections."""
        await self._client.close()


def _run_key(run: str) -> str:
    return f"warren:run:{{{run}}}"


def _as_progress(reply: Sequence[Any]) -> RunProgress:
    info, cancelled, published, complete, committed, totals = reply
    return RunProgress(
        info=unpack_info(info),
        published=int(published),
        complete=complete == b"1",
        committed=committed,
        cancelled=cancelled == b"1",
        totals=add_totals(unpack_totals(text) for text in totals),
    )
