"""How many requests an endpoint gets at a time: additive increase, multiplicative decrease.

Signals, judged once a second: the share of "too many requests" among its answers, and, where the
engine tells (vLLM's /metrics), requests waiting in it and the use of its KV cache. The floor is a
share of the ceiling: below it, waiting as long as `Retry-After` says is what keeps the peace.
"""

import time
from dataclasses import dataclass
from typing import Final

from workers.model_gateway.slots import Slots

INTERVAL_S: Final = 1.0
#: Fewer answers than this say nothing about a share.
_ENOUGH: Final = 10
_FLOOR_SHARE: Final = 1 / 8
#: 429s rarer than this are noise.
_NOISE: Final = 0.02
_GROW: Final = 0.1
#: An endpoint that has come back starts with this share, doubled by each round of successes.
_RESTART_SHARE: Final = 0.25
#: Of the KV cache: below the first there is room, above the second the engine preempts soon.
_KV_ROOM: Final = 0.8
_KV_FULL: Final = 0.95


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """What an engine says of itself."""

    running: float
    waiting: float
    kv_used: float
    """Share of the KV cache, 0 to 1."""


class Congestion:
    """Moves the limit of one endpoint's slots between a floor and its ceiling."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._ceiling = slots.limit
        self._floor = max(int(slots.limit * _FLOOR_SHARE), 1)
        self._since = time.monotonic()
        self._answers = 0
        self._throttled = 0
        self._restarting = False

    def answered(self, *, throttled: bool) -> None:
        """Count an answer, good or 429."""
        self._answers += 1
        self._throttled += throttled
        if self._restarting and not throttled:
            self._set(self._slots.limit + 1)
            self._restarting = self._slots.limit < self._ceiling
        if self._answers >= _ENOUGH and time.monotonic() - self._since >= INTERVAL_S:
            self._judge()

    def restart(self) -> None:
        """The endpoint was down and is back: not everything at once."""
        self._restarting = True
        self._set(int(self._slots.limit * _RESTART_SHARE))

    def engine_says(self, load: EngineLoad) -> None:
        """Follow the engine's own figures."""
        if load.kv_used > _KV_FULL or load.waiting > max(load.running, 1.0):
            self._set(int(self._slots.limit * 0.8))
        elif load.waiting == 0 and load.kv_used < _KV_ROOM:
            self._grow()

    def _judge(self) -> None:
        share = self._throttled / self._answers
        self._since, self._answers, self._throttled = time.monotonic(), 0, 0
        if share > _NOISE:
            self._set(int(self._slots.limit * (1 - share / 2)))
        else:
            self._grow()

    def _grow(self) -> None:
        if self._slots.held >= self._slots.limit // 2:  # an unused limit proves nothing
            self._set(self._slots.limit + max(int(self._slots.limit * _GROW), 1))

    def _set(self, limit: int) -> None:
        limit = min(max(limit, self._floor), self._ceiling)
        if limit != self._slots.limit:
            self._slots.limit = limit
