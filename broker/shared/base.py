"""What all gateways of a model share: how much it may be asked, and which weights it shall have.

Both implementations keep these promises and pass the same contract tests. Every method is one
atomic operation. Methods raise JournalUnavailable when the store does not answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, Protocol

from broker.errors import Unreachable

#: What may be used of a limit at once after a pause, as seconds' worth.
BURST_S: Final = 2.0
#: Who leads an update says so again this often, and is taken for dead after three times as long.
LEAD_S: Final = 5.0

PauseMode = Literal["keep", "wait", "abort"]
"""What becomes of requests that run when new weights come: they go on under them, are finished
first, or are aborted and made again."""
PAUSE_MODES: Final[tuple[PauseMode, ...]] = ("wait", "keep", "abort")

Phase = Literal["asked", "loading", "done", "failed"]


class PolicyUpdateFailed(Unreachable):
    """An endpoint did not take the weights. It was resumed, with the old ones where it could."""


class Draw(NamedTuple):
    """So much of one limit."""

    bucket: str
    """Which limit, within its model."""
    amount: float
    """Negative gives back."""
    per_minute: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyUpdate:
    """New weights for a model."""

    id: str
    """Names this wish: who asks again with it asks for the same."""
    version: int
    path: str
    """As the model's servers see it."""
    mode: PauseMode
    before: str = ""
    """Where the weights are that it replaces; empty: those that the servers started with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyState:
    """How a model's newest update stands."""

    update: PolicyUpdate
    phase: Phase
    error: str = ""
    """Why it failed."""
    version: int | None = None
    """The newest version that every endpoint has loaded; None: none was, that is known here."""

    @property
    def open(self) -> bool:
        """Whether gateways have to wait for it."""
        return self.phase in ("asked", "loading")


class Spent(NamedTuple):
    """What the model calls of a run have come to so far, those of unfinished rollouts too."""

    tokens: int = 0
    """Prompt and generated."""
    cost_usd: float = 0.0


class Shared(Protocol):
    """See the module's docstring. Names of models are those that tasks use."""

    async def draw(self, model: str, draws: Sequence[Draw]) -> float:
        """Take from these limits at once; seconds to wait before using what was taken.

        Each fills steadily, up to BURST_S' worth; who finds it empty overdraws it and waits
        until it is paid back, so that the order of arrival holds.
        """
        ...

    async def spend(self, account: str, more: Spent) -> None:
        """Add to what was spent; `account` names a run and its generation."""
        ...

    async def spent(self, account: str) -> Spent:
        """All that was spent and is known here: a store that was emptied begins at 0."""
        ...

    async def ask(self, model: str, update: PolicyUpdate) -> PolicyState:
        """Wish for new weights, unless another update is open; how the newest one stands."""
        ...

    async def policy(self, model: str) -> PolicyState | None:
        """How the newest update stands, None where none is known."""
        ...

    async def lead(self, model: str, update: str, who: str) -> bool:
        """Become or stay the one process that has the engines load this open update."""
        ...

    async def settle(self, model: str, update: PolicyUpdate, error: str = "") -> None:
        """It is loaded everywhere, or failed; restored where the store lost it meanwhile."""
        ...

    async def restore(self, model: str, update: str, who: str) -> bool:
        """Become or stay the one process that loads this update, which is done, once more into
        engines that lost it. Nobody leads the next one meanwhile, even if that is open."""
        ...

    async def restored(self, model: str, who: str) -> None:
        """It is over, for better or worse."""
        ...

    async def withdraw(self, model: str, update: str) -> bool:
        """Take back what nobody has begun yet; whether it was."""
        ...

    async def close(self) -> None:
        """Let go of the store."""
        ...
