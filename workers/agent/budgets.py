"""Whether a run has used up its budget: what its calls have cost, finished rollouts or not."""

import time
from typing import Final

from broker.errors import JournalUnavailable
from broker.journal.runs import Runs
from broker.messages import Failure, Task
from broker.shared.base import Shared, Spent

#: An answer is remembered for this long: gateways tell twice a second.
_FRESH_S: Final = 0.5


class Budgets:
    """Answers for all runs of a worker."""

    def __init__(self, runs: Runs, shared: Shared) -> None:
        self._runs = runs
        self._shared = shared
        self._known: dict[str, tuple[float, Spent]] = {}

    async def exceeded(self, task: Task) -> Failure | None:
        """Why the task's run must end; None where it may go on, or nobody can tell."""
        budget = task.budget
        if budget.max_tokens is None and budget.max_cost_usd is None:
            return None
        try:
            spent = await self._spent(task)
        except JournalUnavailable:
            return None  # asked again soon
        message = ""
        if budget.max_tokens is not None and spent.tokens >= budget.max_tokens:
            message = f"of {budget.max_tokens} tokens is used up ({spent.tokens})"
        if budget.max_cost_usd is not None and spent.cost_usd >= budget.max_cost_usd:
            message = f"of ${budget.max_cost_usd:g} is used up (${spent.cost_usd:.4f})"
        return Failure(kind="budget", message=f"the run's budget {message}") if message else None

    async def _spent(self, task: Task) -> Spent:
        """As gateways tell, or as rows say where a store has forgotten (embedded, gone on with)."""
        account = task.journal_key.partition("/")[0]
        asked_at, spent = self._known.get(account, (float("-inf"), Spent()))
        if time.monotonic() - asked_at < _FRESH_S:
            return spent
        told = await self._shared.spent(account)
        progress = await self._runs.progress(task.run)
        if progress is not None and progress.info.generation == task.generation:
            rows = progress.totals
            tokens = rows.prompt_tokens + rows.generated_tokens
            told = Spent(max(told.tokens, tokens), max(told.cost_usd, rows.cost_usd))
        self._known[account] = time.monotonic(), told
        return told
