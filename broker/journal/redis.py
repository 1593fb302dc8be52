"""The journal in Redis: for workers on many machines. One hash per rollout, few scripts.

Every operation is one round trip (redis_client.py). Redis must not evict:
`maxmemory-policy noeviction`.
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from broker import codec
from broker.journal.base import (
    LEASE_S,
    Begun,
    Busy,
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
    Stored,
    Taken,
    Upload,
)
from broker.journal.record import VERIFY
from broker.journal.redis_client import PATIENCE_S, Client, Script, chunks
from broker.journal.redis_listener import listen
from broker.messages import Reply
from broker.names import new_id

#: What has not changed for this long, claims apart, is forgotten.
KEEP_S: Final = 7 * 86400.0
#: A larger result's reply says only that it is there, and its owner reads it. Lua hashes each byte
#: of the text it is put together in (some 12 instructions), so above this reading costs less; and
#: Redis cuts who listens and has 32 MB to read, or 8 MB for a minute (client-output-buffer-limit).
TOLD_BYTES: Final = 16 * 1024


def _records(rollout: str) -> Sequence[str]:
    """Its own record and, for a verifier's, its rollout's.

    Braces keep a rollout and its verifier on one node of a cluster.
    """
    if not rollout.endswith(VERIFY):
        return (f"warren:{{{rollout}}}",)
    record = f"warren:{{{rollout.removesuffix(VERIFY)}}}"
    return (record + VERIFY, record)


def _script(operation: str) -> Script:
    return Script("common.lua", f"{operation}.lua")


class RedisJournal:
    """`Journal` in Redis, shared by all who connect."""

    def __init__(self, client: Client, *, lease_s: float, keep_s: float) -> None:
        self._client = client
        self._take = _script("take")
        self._begin = _script("begin")
        self._finish = _script("finish")
        self._keep_first = _script("keep_first")
        self._ended = _script("ended")
        self._committed = _script("committed")
        self._others = _script("journal")
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

    def _run(self, script: Script, rollout: str, *args: Any) -> Awaitable[Any]:
        return self._client.run(script, _records(rollout), self._keep_ms, *args)

    def _do(self, operation: str, rollout: str, *args: Any) -> Awaitable[Any]:
        return self._run(self._others, rollout, operation, *args)

    async def take(
        self, rollout: str, inbox: str, *, counts: bool = True, uncounted: int = 0
    ) -> Taken:
        fresh, now, takes = new_id(), time.time(), counts + uncounted
        reply = await self._run(self._take, rollout, fresh, inbox, int(counts), repr(now), takes)
        match reply:
            case b"fresh":
                return _new_run(fresh, takes, now)
            case [b"owned", owner]:
                return Owned(owner.decode())
            case [b"run", fields]:
                return _as_run(fields)
        return Committed()

    async def release(self, rollout: str, epoch: str, inbox: str) -> None:
        await self._do("release", rollout, epoch, inbox)

    async def begin(self, call: CallRef, *, force: bool = False) -> Begun:
        reply = await self._run(
            self._begin,
            call.rollout,
            call.epoch,
            call.path,
            call.request_hash,
            call.held,
            call.carrier,
            call.executor,
            *(("force",) if force else ()),
        )
        match reply:
            case int():
                return Go(reply, b"", 0)
            case [b"go", starts, state, version]:
                return Go(starts, state, version)
            case [b"found", result, inbox]:
                return Found(result, inbox.decode())
            case [b"mismatch", inbox]:
                return Mismatch(inbox.decode())
            case b"duplicate":
                return Duplicate()
            case b"busy":
                return Busy()
        return _gone_or_lost(reply)

    async def put_off(self, call: CallRef) -> None:
        await self._do("put_off", call.rollout, call.epoch, call.path, call.claim, call.carrier)

    async def finish(
        self, call: CallRef, result: bytes, *, state: bytes | None = None, state_version: int = 0
    ) -> Finished | Gone | Lost:
        reply = await self._run(
            self._finish,
            call.rollout,
            call.epoch,
            call.path,
            call.request_hash,
            call.held,
            result,
            *_reply(call, result),
            *(() if state is None else (state_version, state)),
        )
        match reply:
            case [b"known", inbox, winner]:
                return Finished(winner, False, inbox.decode())
            case b"gone" | b"lost":
                return _gone_or_lost(reply)
        told = reply[:1] == b"!"  # before the owner's inbox; "@" where it was not told
        return Finished(result, True, reply[1:].decode(), told)

    async def keep_first(
        self, rollout: str, path: str, request_hash: bytes, result: bytes
    ) -> Stored | Committed:
        fresh, now = new_id(), repr(time.time())
        reply = await self._run(self._keep_first, rollout, fresh, now, path, request_hash, result)
        match reply:
            case b"stored":
                return Stored(request_hash, result)
            case [known_hash, known]:
                return Stored(known_hash, known)
        return Committed()

    async def look(self, rollout: str, epoch: str, paths: Sequence[str]) -> Overview | Gone | Lost:
        reply = await self._do("look", rollout, epoch, *paths)
        match reply:
            case [b"seen", inbox, state, version, calls]:
                results = {p.decode(): Stored(h, r) for p, h, r, _ in calls if r is not None}
                standing = {p.decode(): how for p, _, _, how in calls}
                return Overview(
                    inbox=inbox.decode(),
                    results=results,
                    begun=frozenset(p for p, how in standing.items() if how >= 1),
                    claimed=frozenset(p for p, how in standing.items() if how == 2),
                    state=state,
                    state_version=version,
                )
        return _gone_or_lost(reply)

    async def result(self, rollout: str, epoch: str, path: str) -> bytes | None:
        # a plain command: what a script reads becomes a string of Lua's, which it hashes
        record = _records(rollout)[0]
        known, result = await self._client.do("HMGET", record, "epoch", f"result:{path}")
        return result if known == epoch.encode() else None

    async def upload(self, upload: Upload) -> bool:
        results = (
            value
            for path, stored in upload.results.items()
            for value in (path, stored.request_hash, stored.result)
        )
        reply = await self._do(
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
        attempt: int | None = await self._do("restart", rollout, epoch, new_id())
        return attempt

    async def strike(self, rollout: str, epoch: str) -> int:
        return int(await self._do("strike", rollout, epoch))

    async def ended(self, rollout: str, epoch: str) -> None:
        await self._run(self._ended, rollout, epoch)

    async def committed(self, rollouts: Sequence[str]) -> None:
        for some in chunks(rollouts):
            keys = [_records(rollout)[0] for rollout in some]
            await self._client.run(self._committed, keys, self._keep_ms)

    async def forget(self, rollouts: Sequence[str]) -> None:
        for some in chunks(rollouts):
            keys = [key for rollout in some for key in _records(rollout + VERIFY)]
            await self._client.do("DEL", *keys)

    async def renew_lease(self, inbox: str, for_s: float | None = None) -> None:
        for_ms = self._lease_ms if for_s is None else round(for_s * 1000)
        await self._client.do("SET", f"warren:lease:{inbox}", b"", "PX", for_ms)

    async def end_lease(self, inbox: str) -> None:
        await self._client.do("DEL", f"warren:lease:{inbox}")

    async def listen(
        self, inbox: str, hear: Callable[[bytes], None], missed: Callable[[], None]
    ) -> None:
        await listen(self._client.address, f"warren:inbox:{inbox}", hear, missed)

    async def close(self) -> None:
        """Let go of the connections."""
        await self._client.close()


def _reply(call: CallRef, result: bytes) -> tuple[bytes, int]:
    """The packed Reply to the owner, and whether the script appends the result, its last bytes.

    Empty where nobody is to be told.
    """
    if not call.executor or not result:
        return b"", 0
    inline = len(result) <= TOLD_BYTES
    reply = codec.pack(
        Reply(
            rollout=call.rollout,
            epoch=call.epoch,
            path=call.path,
            result=result if inline else b"",
        )
    )
    return (reply[: -len(result)], 1) if inline else (reply, 0)


def _gone_or_lost(reply: bytes) -> Gone | Lost:
    return Lost() if reply == b"lost" else Gone()


def _new_run(epoch: str, takes: int, now: float) -> Run:
    return Run(
        epoch=epoch,
        attempt=1,
        results={},
        state=b"",
        state_version=0,
        idle_takes=takes,
        strikes=0,
        first_taken_at=now,
    )


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
