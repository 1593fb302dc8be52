"""How many rollouts a worker runs at once, and whose turn it is when all slots are taken.

Deliveries beyond the slots wait in hand, unstarted. Resumed rollouts go first, since theirs is
work half done; then interactive runs and bulk ones take turns, four to one, so that a big batch
neither starves an interactive run nor is starved by it.
"""

import asyncio
from collections import deque
from typing import Final

from broker.topology import Lane

_TURNS: Final[tuple[Lane, ...]] = ("normal", "normal", "normal", "normal", "bulk")


class Slots:
    """A counting semaphore with lanes."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.used = 0
        self._waiting: dict[Lane, deque[asyncio.Future[None]]] = {
            "resume": deque(),
            "suspect": deque(),
            "normal": deque(),
            "bulk": deque(),
        }
        self._turn = 0

    async def acquire(self, lane: Lane) -> None:
        """Wait for a slot, and hold it until `release`."""
        if self.used < self.total:
            self.used += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[lane].append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.release()  # the slot came together with the cancellation
            raise

    def release(self) -> None:
        """Let the next one have the slot."""
        turn = self._next()
        if turn is None:
            self.used -= 1
        else:
            turn.set_result(None)  # the slot changes hands

    def _next(self) -> asyncio.Future[None] | None:
        for lane in self._order():
            waiting = self._waiting[lane]
            while waiting:
                turn = waiting.popleft()
                if not turn.done():
                    return turn
        return None

    def _order(self) -> tuple[Lane, ...]:
        self._turn = (self._turn + 1) % len(_TURNS)
        first = _TURNS[self._turn]
        return ("suspect", "resume", first, "bulk" if first == "normal" else "normal")
