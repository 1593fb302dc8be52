"""How soon a run is as fast again as it was before a fault.

A run at constant concurrency on a model that takes its time, so that the model's latency sets the
pace and not the machine. `rate` is answers per second before the fault; it is back at the end of
the first two seconds, after the fault's end, in which the model gave 80 % of that.

    run = unhurried(warren, tasks=400)
    pace = Pace(warren, run)
    before = pace.measure()
    ... the fault, until `ended` ...
    seconds = pace.back(before, ended)
    hurry(run)
"""

import time
from typing import Final

from tests.support.cluster import Cluster
from tests.support.runs import Run

#: Rollouts in flight. Either of two agent workers has slots for all of them.
CONCURRENCY: Final = 24
LATENCY_S: Final = 1.0
SHARE: Final = 0.8
WINDOW_S: Final = 2.0
BASE_S: Final = 4.0
SETTLE_S: Final = 3.0
#: What the issue promises ...
_RECOVERY_S: Final = 10.0
#: ... of a machine that leaves the pace to the model: of this many answers per second at least.
_CALM_RATE: Final = 16.0
#: An answer after this long is a bug, on any machine.
_PATIENCE_S: Final = 60.0


def unhurried(warren: Cluster, tasks: int) -> Run:
    """Start a run whose pace the model sets."""
    warren.model.latency_s, warren.model.spread = LATENCY_S, 0.5
    return warren.enqueue(tasks, "--window", str(CONCURRENCY))


def hurry(run: Run) -> None:
    """Let the rest of it be quick; then the oracle."""
    run.cluster.model.latency_s = 0.02
    run.check()


def allowed_s(rate: float) -> float:
    """How long it may take where so many answers came per second: more on a machine that lags."""
    return _RECOVERY_S * max(1.0, _CALM_RATE / rate)


class Pace:
    """How fast a run's model calls are answered."""

    def __init__(self, warren: Cluster, run: Run) -> None:
        self._warren = warren
        self._model = warren.model
        self._run = run

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
            assert not self._run.all_answered(), "the run ended before its rate could be measured"
            now = time.monotonic()
            return now >= since + WINDOW_S and self._rate_now(now) >= SHARE * rate

        self._warren.until(is_back, _PATIENCE_S, lambda: f"{self._rate_now():.1f} of {rate:.1f}/s")
        return time.monotonic() - since

    def _rate_now(self, now: float | None = None) -> float:
        now = now or time.monotonic()
        return self._model.rate(now - WINDOW_S, now)
