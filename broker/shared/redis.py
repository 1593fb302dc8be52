"""What gateways share in Redis: one script, over the journal's client."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

from broker.journal.redis import KEEP_S
from broker.journal.redis_client import PATIENCE_S, Client, Script
from broker.shared.base import BURST_S, LEAD_S, Draw, PolicyState, PolicyUpdate, Spent

_LEASE_MS: Final = int(3 * LEAD_S * 1000)


class RedisShared:
    """`Shared` among all who connect."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._script = Script("shared.lua", package=__package__)

    @classmethod
    async def connect(cls, url: str, *, patience_s: float = PATIENCE_S) -> "RedisShared":
        """Raises Unreachable where nobody answers there or we are refused."""
        return cls(await Client.connect(url, patience_s))

    async def draw(self, model: str, draws: Sequence[Draw]) -> float:
        if not draws:
            return 0.0
        keys = [f"warren:limit:{{{model}}}:{draw.bucket}" for draw in draws]
        args = [
            arg for draw in draws for arg in (repr(draw.amount), repr(draw.per_minute), BURST_S)
        ]
        return float(await self._client.run(self._script, keys, "draw", *args))

    async def spend(self, account: str, more: Spent) -> None:
        key, cost = f"warren:spent:{{{account}}}", repr(more.cost_usd)
        await self._client.run(self._script, [key], "spend", more.tokens, cost, int(KEEP_S))

    async def spent(self, account: str) -> Spent:
        key = f"warren:spent:{{{account}}}"
        tokens, cost = await self._client.do("HMGET", key, "tokens", "cost_usd")
        return Spent(int(tokens or 0), float(cost or 0))

    async def ask(self, model: str, update: PolicyUpdate) -> PolicyState:
        return _as_state(await self._run("ask", model, update.id, _packed(update)))

    async def policy(self, model: str) -> PolicyState | None:
        reply = await self._run("policy", model)
        return None if reply is None else _as_state(reply)

    async def lead(self, model: str, update: str, who: str) -> bool:
        return bool(await self._run("lead", model, update, who, _LEASE_MS))

    async def settle(self, model: str, update: PolicyUpdate, error: str = "") -> None:
        await self._run("settle", model, update.id, _packed(update), error, update.version)

    async def restore(self, model: str, update: str, who: str) -> bool:
        return bool(await self._run("restore", model, update, who, _LEASE_MS))

    async def restored(self, model: str, who: str) -> None:
        await self._run("restored", model, who)

    async def withdraw(self, model: str, update: str) -> bool:
        return bool(await self._run("withdraw", model, update))

    async def close(self) -> None:
        """Let go of the connections."""
        await self._client.close()

    async def _run(self, operation: str, model: str, *args: Any) -> Any:
        key = f"warren:policy:{{{model}}}"
        return await self._client.run(self._script, [key, f"{key}:leader"], operation, *args)


def _packed(update: PolicyUpdate) -> str:
    return json.dumps(asdict(update))


def _as_state(reply: Sequence[bytes]) -> PolicyState:
    update, phase, error, version = (field.decode() for field in reply)
    return PolicyState(
        update=PolicyUpdate(**json.loads(update)),
        phase=phase,  # type: ignore[arg-type]  # the script writes no other
        error=error,
        version=int(version) if version else None,
    )
