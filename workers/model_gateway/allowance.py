"""Requests and tokens per minute: who has to wait how long, before anything is sent.

All gateways of a model draw from the same limits (broker/shared/base.py). Tokens are guessed from
the calls before and set right once they are known, with the next draw or soon after.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from broker.errors import JournalUnavailable
from broker.messages import Usage
from broker.shared.base import Draw, Shared

log = logging.getLogger(__name__)

_FIRST_GUESS: Final = 1000.0
#: Weight of the newest call in the guess.
_NEWEST: Final = 0.1
_SETTLE_EVERY_S: Final = 0.25


class Allowance:
    """What one model may use; None is no limit."""

    def __init__(
        self,
        shared: Shared,
        model: str,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._sleep = sleep
        self._shared = shared
        self._model = model
        self._requests_per_minute = requests_per_minute
        self._tokens_per_minute = tokens_per_minute
        self.limited = requests_per_minute is not None or tokens_per_minute is not None
        """Whether there is any limit."""
        self._guess = _FIRST_GUESS
        self._requests_owed = 0.0
        """Taken by calls that were given up; negative."""
        self._tokens_owed = 0.0
        """Used beyond what was guessed; negative where it was less."""

    async def admit(self) -> float:
        """Wait for one request's worth; how many tokens were guessed for it.

        Raises JournalUnavailable.
        """
        if not self.limited:
            return 0.0
        guessed = self._guess
        wait_s = await self._draw(1.0, guessed)
        try:
            await self._sleep(wait_s)
        except asyncio.CancelledError:
            self._requests_owed -= 1
            self._tokens_owed -= guessed
            raise
        return guessed

    def used(self, guessed: float, usage: Usage | None) -> None:
        """Set a guess right; None where the request failed, which costs no tokens."""
        tokens = usage.prompt_tokens + usage.generated_tokens if usage else 0
        self._tokens_owed += tokens - guessed
        if usage:
            self._guess += _NEWEST * (tokens - self._guess)

    async def settle(self) -> None:
        """Set guesses right while no further calls do it. Runs until cancelled."""
        while self.limited:
            await asyncio.sleep(_SETTLE_EVERY_S)
            if self._requests_owed or self._tokens_owed:
                try:
                    await self._draw(0.0, 0.0)
                except JournalUnavailable as e:
                    log.warning("limits unavailable", extra={"error": str(e)})

    async def _draw(self, requests: float, tokens: float) -> float:
        requests += self._requests_owed
        tokens += self._tokens_owed
        self._requests_owed = self._tokens_owed = 0.0
        draws = []
        if self._requests_per_minute is not None:
            draws.append(Draw("requests", requests, self._requests_per_minute))
        if self._tokens_per_minute is not None:
            draws.append(Draw("tokens", tokens, self._tokens_per_minute))
        return await self._shared.draw(self._model, draws)
