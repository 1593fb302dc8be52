"""How many requests an endpoint gets at a time: additive increase, multiplicative decrease.

Signals, judged once a second: the share of "too many requests" among its answers, and, where the
engine tells (vLLM's /metrics), requests waiting in it and the use of its KV cache; where it does
not, how long answers take (slowness.py). That is known only when the calls are over that were sent
since the last change, so there each change waits for those. The floor is a share of the ceiling:
below it, waiting as long as `Retry-After` says is what keeps the peace.
"""

import time
from dataclasses import dataclass
from typing import Final

from workers.model_gateway.slots import Slots
from workers.model_gateway.slowness import Slowness

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
#: So many times as long as at best, and more calls in flight make nothing faster.
_SLOW: Final = 3.0


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
        self._slowness: Slowness | None = None
        self._changed = self._since
        """What was sent before says nothing of the present limit."""

    def follow_latency(self) -> None:
        """The engine tells nothing of its load: the times that answers take do."""
        self._slowness = Slowness(self._floor)

    def answered(self, *, throttled: bool, seconds: float = 0.0, tokens: int = 0) -> None:
        """Count an answer, good or 429; a good one took `seconds` and has `tokens`, if known."""
        self._answers += 1
        self._throttled += throttled
        if (
            self._slowness is not None
            and seconds > 0
            and time.monotonic() - seconds >= self._changed
        ):
            self._slowness.add(seconds, tokens, self._slots.held)
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
            self._change(int(self._slots.limit * (1 - share / 2)))
        elif self._slowness is None:
            self._grow()
        elif (times := self._slowness.judge()) is not None:
            self._follow(times)

    def _follow(self, times: float) -> None:
        if times > _SLOW:
            self._restarting = False
            self._change(int(self._slots.limit * max(_SLOW / times, 0.5)))
        elif not self._restarting:
            self._grow()

    def _grow(self) -> None:
        if self._slots.held >= self._slots.limit // 2:  # an unused limit proves nothing
            self._change(self._slots.limit + max(int(self._slots.limit * _GROW), 1))

    def _change(self, limit: int) -> None:
        before = self._slots.limit
        self._set(limit)
        if self._slowness is not None:
            self._slowness.forget()
            if self._slots.limit != before:
                self._changed = time.monotonic()

    def _set(self, limit: int) -> None:
        limit = min(max(limit, self._floor), self._ceiling)
        if limit != self._slots.limit:
            self._slots.limit = limit
