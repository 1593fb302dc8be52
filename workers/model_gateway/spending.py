"""Tells the store what each run spends, a few times a second, so that its budget can end it."""

import asyncio
import logging
from typing import Final

from broker.errors import JournalUnavailable
from broker.messages import ModelCall, Usage
from broker.shared.base import Shared, Spent

log = logging.getLogger(__name__)

_TELL_EVERY_S: Final = 0.5


class Spending:
    """What this gateway's calls cost and the store has not heard of yet."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._untold: dict[str, Spent] = {}

    def add(self, call: ModelCall, usage: Usage) -> None:
        """This call was paid for."""
        account = call.rollout.partition("/")[0]  # its run and generation
        tokens, cost_usd = self._untold.get(account, (0, 0.0))
        tokens += usage.prompt_tokens + usage.generated_tokens
        self._untold[account] = Spent(tokens, cost_usd + usage.cost_usd)

    async def tell(self) -> None:
        """Tell the store. Runs until cancelled; what is untold then is lost."""
        while True:
            await asyncio.sleep(_TELL_EVERY_S)
            untold, self._untold = self._untold, {}
            for account, more in untold.items():
                try:
                    await self._shared.spend(account, more)
                except JournalUnavailable as e:
                    log.warning("spending not told", extra={"run": account, "error": str(e)})
