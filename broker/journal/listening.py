"""Replies that a journal tells by itself: its store knows of a result before anybody else does.

What an executor finishes (`CallRef.executor`) is told to the rollout's current owner in the same
step, where the store can do that and that owner listens; `Finished.told` says so. All other
replies go through the broker. Either way a reply is a hint: it may be lost, or come twice.
"""

from collections.abc import Callable
from typing import Protocol


class Tells(Protocol):
    """What owners ask of a journal besides its operations."""

    async def listen(
        self, inbox: str, hear: Callable[[bytes], None], missed: Callable[[], None]
    ) -> None:
        """Hear the packed Replies to this inbox until cancelled, over a lost connection too.

        `missed` is called once it is mended: replies that were told meanwhile are lost, their
        results are in the journal. Returns at once where the store tells nobody anything.
        """
        ...


class TellsNobody:
    """Of a journal whose owners hear through the broker alone."""

    async def listen(
        self, inbox: str, hear: Callable[[bytes], None], missed: Callable[[], None]
    ) -> None:
        """See Tells."""
