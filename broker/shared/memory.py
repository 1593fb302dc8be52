"""What gateways share while all of them live in one process."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from broker.shared.base import BURST_S, LEAD_S, Draw, PolicyState, PolicyUpdate, Spent


@dataclass(slots=True)
class _Bucket:
    level: float
    at: float


class MemoryShared:
    """`Shared` that ends with its process."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: dict[tuple[str, str], _Bucket] = {}
        self._spent: dict[str, Spent] = {}
        self._policies: dict[str, PolicyState] = {}
        self._leads: dict[str, tuple[str, float]] = {}

    async def draw(self, model: str, draws: Sequence[Draw]) -> float:
        return max((self._draw(model, draw) for draw in draws), default=0.0)

    def _draw(self, model: str, draw: Draw) -> float:
        now, rate = self._clock(), draw.per_minute / 60
        most = max(rate * BURST_S, 1.0)
        bucket = self._buckets.setdefault((model, draw.bucket), _Bucket(most, now))
        level = min(bucket.level + (now - bucket.at) * rate, most)
        bucket.level, bucket.at = min(level - draw.amount, most), now
        return max(-bucket.level / rate, 0.0)

    async def spend(self, account: str, more: Spent) -> None:
        before = self._spent.get(account, Spent())
        self._spent[account] = Spent(before.tokens + more.tokens, before.cost_usd + more.cost_usd)

    async def spent(self, account: str) -> Spent:
        return self._spent.get(account, Spent())

    async def ask(self, model: str, update: PolicyUpdate) -> PolicyState:
        known = self._policies.get(model)
        if known is None or (known.update.id != update.id and not known.open):
            version = known.version if known else None
            known = PolicyState(update=update, phase="asked", version=version)
            self._policies[model] = known
        return known

    async def policy(self, model: str) -> PolicyState | None:
        return self._policies.get(model)

    async def lead(self, model: str, update: str, who: str) -> bool:
        known = self._policies.get(model)
        if known is None or known.update.id != update or not known.open:
            return False
        if not self._take_lead(model, who):
            return False
        self._policies[model] = replace(known, phase="loading")
        return True

    async def restore(self, model: str, update: str, who: str) -> bool:
        known = self._policies.get(model)
        leader, until = self._leads.get(model, ("", 0.0))
        going_on = leader == who and until > self._clock()
        if not going_on and (known is None or known.update.id != update or known.phase != "done"):
            return False
        return self._take_lead(model, who)

    async def restored(self, model: str, who: str) -> None:
        if self._leads.get(model, ("", 0.0))[0] == who:
            del self._leads[model]

    def _take_lead(self, model: str, who: str) -> bool:
        leader, until = self._leads.get(model, (who, 0.0))
        if leader != who and until > self._clock():
            return False
        self._leads[model] = who, self._clock() + 3 * LEAD_S
        return True

    async def settle(self, model: str, update: PolicyUpdate, error: str = "") -> None:
        known = self._policies.get(model)
        if known is not None and known.update.id != update.id:
            return
        self._leads.pop(model, None)
        version = known.version if known else None
        self._policies[model] = PolicyState(
            update=update,
            phase="failed" if error else "done",
            error=error,
            version=version if error else update.version,
        )

    async def withdraw(self, model: str, update: str) -> bool:
        known = self._policies.get(model)
        if known is None or known.update.id != update or known.phase != "asked":
            return False
        self._policies[model] = replace(known, phase="failed", error="nobody took it")
        return True

    async def close(self) -> None:
        """Nothing to let go of."""
