"""Whether an endpoint is down, and who may find out that it is back.

Down: 5 s without a success and at least 10 failures, or 20 failures in a row; 429s say nothing.
While it is down no call reaches it, except trials: after a probe that was answered one call may
try, and trials together stay within the retry budget, 10 % of the endpoint's normal traffic.
"""

import time
from collections import deque
from collections.abc import Callable
from typing import Final

SILENT_S: Final = 5.0
SILENT_FAILURES: Final = 10
FAILURES_IN_A_ROW: Final = 20
RETRY_SHARE: Final = 0.1
#: However little traffic there is, so many trials a minute find out that it is back.
LEAST_TRIALS: Final = 12
_WINDOW_S: Final = 60.0

Clock = Callable[[], float]


class Health:
    """One endpoint's record. Times are of `clock`, monotonic seconds."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._failures = 0
        """Since the last success."""
        self._last_success = clock()
        self._requests = Rate(clock)
        self._normal = 0
        """Requests in the minute before it went down."""
        self._trials = Rate(clock)
        self._trial_open = False
        self.down = False
        self.why = ""
        """What failed last."""

    @property
    def usable(self) -> bool:
        """Whether a call may be sent now: it is up, or a trial is open."""
        return not self.down or self._trial_open

    def sent(self) -> None:
        """A call is being sent; uses up the trial where one is open."""
        if self.down:
            self._trial_open = False
            self._trials.count()
        else:
            self._requests.count()

    def succeeded(self) -> bool:
        """It answered; whether it thereby came back."""
        came_back, self.down = self.down, False
        self._failures, self._last_success = 0, self._clock()
        return came_back

    def failed(self, why: str) -> bool:
        """It failed, by its own fault; whether it thereby went down."""
        self._failures += 1
        self.why = why
        silent_s = self._clock() - self._last_success
        bad = self._failures >= FAILURES_IN_A_ROW or (
            self._failures >= SILENT_FAILURES and silent_s >= SILENT_S
        )
        if not bad or self.down:
            return False
        self.down = True
        self._normal = self._requests.total()
        return True

    def open_trial(self) -> bool:
        """A probe was answered: let one call try, within the budget. Whether one may."""
        budget = max(RETRY_SHARE * self._normal, LEAST_TRIALS)
        self._trial_open = self._trials.total() < budget
        return self._trial_open


class Rate:
    """How much happened in the last minute, to the second."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._seconds: deque[tuple[int, int]] = deque()
        self._total = 0

    def count(self, amount: int = 1) -> None:
        """It happened now."""
        second = int(self._clock())
        if self._seconds and self._seconds[-1][0] == second:
            self._seconds[-1] = second, self._seconds[-1][1] + amount
        else:
            self._seconds.append((second, amount))
        self._total += amount

    def total(self) -> int:
        """Of the last 60 s."""
        while self._seconds and self._seconds[0][0] <= self._clock() - _WINDOW_S:
            self._total -= self._seconds.popleft()[1]
        return self._total
