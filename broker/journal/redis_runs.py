"""What is committed of each run, in the journal's Redis."""

import time
from collections.abc import Sequence
from typing import Any, Final

import msgpack

from broker.journal.redis_client import PATIENCE_S, Client, Script, chunks
from broker.journal.runs import RunInfo, RunProgress, Totals
from broker.journal.totals import add_totals, pack_info, pack_totals, unpack_info, unpack_totals

#: `is_cancelled` remembers an answer for this long.
_CANCELLED_S: Final = 2.0


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
        for some in chunks(rows) if rows else ((),):
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
