"""Requests and tokens per minute: who has to wait how long, before anything is sent.

Each is a bucket that fills steadily; who comes takes at once and waits for what it overdrew, so
the order of arrival holds. Tokens are guessed from the calls before and set right afterwards.
This process's share only: a limit for several gateways is divided among them.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Final

from broker.messages import Usage

#: What may be used at once after a pause, as seconds' worth.
_BURST_S: Final = 2.0
_FIRST_GUESS: Final = 1000.0
#: Weight of the newest call in the guess.
_NEWEST: Final = 0.1


class Bucket:
    """So much per minute."""

    def __init__(self, per_minute: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = per_minute / 60
        self._clock = clock
        self._most = max(self._rate * _BURST_S, 1.0)
        self._level = self._most
        self._at = clock()

    def take(self, amount: float) -> float:
        """Take it now; seconds to wait before using it. Negative amounts give back."""
        now = self._clock()
        self._level = min(self._level + (now - self._at) * self._rate, self._most)
        self._at = now
        self._level -= amount
        return max(-self._level / self._rate, 0.0)


class Allowance:
    """What one model may use; None is no limit."""

    def __init__(
        self,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._requests = Bucket(requests_per_minute, clock) if requests_per_minute else None
        self._tokens = Bucket(tokens_per_minute, clock) if tokens_per_minute else None
        self._guess = _FIRST_GUESS

    def take(self) -> tuple[float, float]:
        """Take one request's worth: seconds to wait, and how many tokens were guessed."""
        wait_s = self._requests.take(1) if self._requests else 0.0
        if self._tokens:
            wait_s = max(wait_s, self._tokens.take(self._guess))
        return wait_s, self._guess

    async def admit(self) -> float:
        """Wait for one request's worth; how many tokens were guessed for it."""
        wait_s, guessed = self.take()
        if wait_s:
            await asyncio.sleep(wait_s)
        return guessed

    def used(self, guessed: float, usage: Usage | None) -> None:
        """Set a guess right; None where the request failed, which costs no tokens."""
        tokens = usage.prompt_tokens + usage.generated_tokens if usage else 0
        if self._tokens:
            self._tokens.take(tokens - guessed)
        if usage:
            self._guess += _NEWEST * (tokens - self._guess)
