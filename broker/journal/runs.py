"""What is committed of each run: what `Runs` promises in memory, SQLite and Redis alike."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """What one shard of a run has committed so far; absolute, so that writing it twice is once."""

    completed: int = 0
    truncated: int = 0
    failed: int = 0
    failed_by_kind: Mapping[str, int] = field(default_factory=dict)
    reward_sum: float = 0.0
    rewarded: int = 0
    """Rows with a reward that is not null."""
    model_calls: int = 0
    tool_calls: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    cost_usd: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """What a run is, as its producer registered it."""

    run: str
    generation: str
    environment: str
    model: str
    repeats: int
    created_at: float
    """Unix seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunProgress:
    """How a run stands."""

    info: RunInfo
    published: int
    """The producer's watermark: how many task instances the broker has confirmed."""
    complete: bool
    """Whether the producer has published all it wants to."""
    committed: int
    """Distinct rollouts with a durable row."""
    cancelled: bool
    totals: Totals
    """Summed over shards."""


class Runs(Protocol):
    """What is committed of each run: a cache of what the sinks' parts say, rebuilt from them."""

    async def register(self, info: RunInfo) -> None:
        """Make the run known; a known one with the same generation keeps its marks."""
        ...

    async def published(self, run: str, generation: str, count: int, complete: bool) -> None:
        """Raise the producer's watermark."""
        ...

    async def mark(
        self,
        run: str,
        generation: str,
        shard: str,
        rows: Sequence[tuple[int, int]],
        totals: Totals,
    ) -> None:
        """Rows of `(task_index, repeat)` are durable; `totals` are the shard's absolute ones."""
        ...

    async def committed(self, run: str, generation: str, repeat: int) -> bytes:
        """Bitmap over task indices of this repeat, bit 7 of byte 0 first (as Redis SETBIT)."""
        ...

    async def progress(self, run: str) -> RunProgress | None:
        """The newest generation's standing, or None where the run is unknown."""
        ...

    async def list(self) -> Sequence[RunProgress]:
        """All known runs, newest first."""
        ...

    async def cancel(self, run: str) -> bool:
        """Mark the run cancelled: its queued tasks become `cancelled` rows. False if unknown."""
        ...

    async def is_cancelled(self, run: str) -> bool:
        """Whether it is. Asked often: implementations may remember the answer for 2 s."""
        ...

    async def forget(self, run: str) -> None:
        """Drop the run's record with its marks."""
        ...

    async def close(self) -> None:
        """Let go of the store."""
        ...
