"""How soon a run is as fast again as it was before a fault.

A run at constant concurrency on a model that takes its time, so that the model's latency sets the
pace and not the machine. `rate` is answers per second before the fault; it is back at the end of
the first two seconds, after the fault's end, in which the model gave 80 % of that.

    paced = Paced(warren, tasks=400)
    before = paced.measure()
    ... the fault, until `ended` ...
    seconds = paced.back(before, ended)
    paced.finish()
"""

import time
from typing import Final

from tests.support.cluster import Cluster

#: Rollouts in flight. Either of two agent workers has slots for all of them.
CONCURRENCY: Final = 24
LATENCY_S: Final = 1.0
SHARE: Final = 0.8
WINDOW_S: Final = 2.0
BASE_S: Final = 4.0
SETTLE_S: Final = 3.0
#: What the issue promises.
RECOVERY_S: Final = 10.0
#: An answer after this long is a bug, on any machine.
_PATIENCE_S: Final = 60.0


class Paced:
    """One such run."""

    def __init__(self, warren: Cluster, tasks: int, *, concurrency: int = CONCURRENCY) -> None:
        self._warren = warren
        self._model = warren.model
        self._model.latency_s = LATENCY_S
        self._model.spread = 0.5
        self.run = warren.enqueue(tasks, "--window", str(concurrency))

    def measure(self) -> float:
        """Answers per second, once it is under way."""
        self._warren.answered(1)
        self._wait(SETTLE_S + BASE_S)
        now = time.monotonic()
        rate = self._model.rate(now - BASE_S, now)
        assert rate > 0, "no answer in the seconds before the fault"
        return rate

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        self._warren.until(lambda: time.monotonic() >= until, 2 * seconds)

    def back(self, rate: float, since: float) -> float:
        """Wait until it is as fast again; seconds from `since` to the end of those that show it."""

        def is_back() -> bool:
            assert not self.run.all_answered(), "the run ended before its rate could be measured"
            now = time.monotonic()
            return now >= since + WINDOW_S and self._rate_now(now) >= SHARE * rate

        self._warren.until(is_back, _PATIENCE_S, lambda: f"{self._rate_now():.1f} of {rate:.1f}/s")
        return time.monotonic() - since

    def _rate_now(self, now: float | None = None) -> float:
        now = now or time.monotonic()
        return self._model.rate(now - WINDOW_S, now)

    def finish(self) -> None:
        """Let the rest be quick; then the oracle."""
        self._model.latency_s = 0.02
        self.run.check(120)
