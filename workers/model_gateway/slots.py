"""Slots of one endpoint: a semaphore whose size can change, fair between runs and lanes.

Whoever waits belongs to a flow: one run in one lane. Free slots go round the flows by weight
(start-time fair queueing), so a run with a thousand waiting calls delays another's by one slot.
"""

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from broker.topology import Lane

#: How many slots a lane's runs get for each one that a `bulk` run gets.
WEIGHTS: Final[Mapping[Lane, float]] = {"resume": 8.0, "normal": 4.0, "bulk": 1.0, "suspect": 1.0}

Waiter = asyncio.Future[None]


@dataclass(slots=True)
class _Flow:
    weight: float
    due: float
    """Virtual time at which its next waiter may go."""
    waiters: deque[Waiter] = field(default_factory=deque)


class Slots:
    """At most `limit` holders at a time."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._now = 0.0
        self._flows: dict[tuple[Lane, str], _Flow] = {}
        self._waiting = 0

    @property
    def limit(self) -> int:
        """How many may hold one. Lowering it takes nobody's slot away."""
        return self._limit

    @limit.setter
    def limit(self, limit: int) -> None:
        self._limit = limit
        self._hand_out()

    @property
    def held(self) -> int:
        """How many are held."""
        return self._held

    @property
    def waiting(self) -> int:
        """How many wait for one."""
        return self._waiting

    def taken(self) -> bool:
        """Whether a slot was free and is now the caller's, who must `release` it; else `wait`."""
        if self._held >= self._limit or self._waiting:
            return False
        self._held += 1
        return True

    async def wait(self, lane: Lane, run: str) -> None:
        """Wait for a slot; whoever got one must `release` it."""
        waiter: Waiter = asyncio.get_running_loop().create_future()
        flow = self._flows.get((lane, run))
        if flow is None:
            weight = WEIGHTS[lane]
            flow = self._flows[lane, run] = _Flow(weight, self._now + 1 / weight)
        flow.waiters.append(waiter)
        self._waiting += 1
        self._hand_out()
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():  # it was handed to us just before
                self.release()
            raise

    def release(self) -> None:
        """Give a slot back, to whoever is next."""
        self._held -= 1
        if self._waiting:
            self._hand_out()

    def _hand_out(self) -> None:
        while self._waiting and self._held < self._limit:
            key = min(self._flows, key=lambda k: self._flows[k].due)
            flow = self._flows[key]
            waiter = flow.waiters.popleft()
            self._waiting -= 1
            if not waiter.done():  # else its owner was cancelled while it waited
                self._now = flow.due
                flow.due += 1 / flow.weight
                self._held += 1
                waiter.set_result(None)
            if not flow.waiters:
                del self._flows[key]
