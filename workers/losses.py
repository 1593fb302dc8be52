"""Counts user functions that never returned; a worker with too many asks to be restarted.

A thread can't be killed, nor can a coroutine that ignores its cancellation. Their calls have
failed in time; what they keep (memory, a core) only the end of the process gives back.
"""

import asyncio
import logging
from collections.abc import Mapping
from typing import Final

from workers.spec import EnvironmentSpec

log = logging.getLogger(__name__)

#: A worker with this many functions that never return asks to be restarted.
MAX_LOST: Final = 8


class Losses:
    """The lost functions of one worker, over all its environments."""

    def __init__(
        self,
        environments: Mapping[str, EnvironmentSpec],
        *,
        limit: int = MAX_LOST,
        unhealthy: asyncio.Event | None = None,
    ) -> None:
        self.unhealthy = unhealthy or asyncio.Event()
        """Set when there are too many: stop, let a supervisor start a new process."""
        self._threads = list({id(s.threads): s.threads for s in environments.values()}.values())
        self._limit = limit
        self._tasks = 0
        self._told = 0

    @property
    def count(self) -> int:
        """How many functions run on though nobody waits for them."""
        lost = self._tasks
        for threads in self._threads:  # asked after every call of a function
            lost += threads.lost
        return lost

    @property
    def too_many(self) -> bool:
        """From here on user code should run in processes of its own."""
        return self.count >= self._limit

    def watch(
        self, environment: str, function: str, *, overdue: bool = False, lost: bool = False
    ) -> None:
        """Look after a call. `overdue`: it took too long; `lost`: it ignored its cancellation."""
        self._tasks += lost
        count = self.count
        self._told = min(self._told, count)  # some may have returned after all
        if overdue and count > self._told:
            self._told = count
            log.error(
                "user code never returned",
                extra={"environment": environment, "function": function, "lost": count},
            )
        if count >= self._limit:
            self.unhealthy.set()
