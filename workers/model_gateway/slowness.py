"""How much slower an endpoint answers than it can, by the time that its answers take.

How long an answer takes says more of its length than of the load. So it is compared with answers
of its own length class only, from one power of two to the next: length alone makes no threefold.
Without usage all are of one class. What an endpoint can do is the median of its best rounds; a slow
round at no more calls in flight than those had is the server's own doing, and the new best.
"""

import statistics
from dataclasses import dataclass
from typing import Final

#: Fewer answers of a length say nothing: one outlier is not a slow server.
_ENOUGH: Final = 10
#: How far a better round moves the best: a lucky one is not what the server can do for long.
_TRUST: Final = 0.3


@dataclass(frozen=True, slots=True)
class _Best:
    seconds: float
    held: int


class Slowness:
    """Rounds of answers of one endpoint."""

    def __init__(self, floor: int) -> None:
        """`floor`: so many calls in flight are never too many."""
        self._floor = floor
        self._took: dict[int, list[float]] = {}
        self._best: dict[int, _Best] = {}
        self._answers = 0
        self._began = 0
        """Calls in flight at the round's first answer, and the most in all of it."""
        self._most = 0

    def add(self, seconds: float, tokens: int, held: int) -> None:
        """An answer of `tokens` took `seconds`, while `held` calls were in flight."""
        self._took.setdefault(tokens.bit_length(), []).append(seconds)
        self._began = self._began or held
        self._most = max(self._most, held)
        self._answers += 1

    def judge(self) -> float | None:
        """End the round: how many times the best it took. None: too few answers to tell.

        A round has an answer for each call in flight at its begin: the first ones are the quick.
        """
        if self._answers < self._began:
            return None
        rounds = {k: statistics.median(t) for k, t in self._took.items() if len(t) >= _ENOUGH}
        if not rounds:
            return None
        times = statistics.median(self._times(k, seconds) for k, seconds in rounds.items())
        self.forget()
        return times

    def forget(self) -> None:
        """Drop the round's answers: they were asked for under another limit."""
        self._took, self._answers, self._began, self._most = {}, 0, 0, 0

    def _times(self, length: int, seconds: float) -> float:
        best = self._best.get(length)
        held = max(self._began, self._floor)
        if best is None or (seconds >= best.seconds and self._most <= best.held):
            self._best[length] = _Best(seconds, held)
        elif seconds < best.seconds:
            self._best[length] = _Best(best.seconds + _TRUST * (seconds - best.seconds), held)
        else:
            return seconds / best.seconds
        return 1.0
