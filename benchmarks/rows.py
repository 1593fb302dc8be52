"""What a run's rows say of it: how long each model call took, and where the slots' time went."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

from benchmarks.slot_time import Life, life_of


@dataclass(frozen=True, slots=True)
class Rows:
    """All rows of one run."""

    asked: Sequence[tuple[float, float]]
    """Of each model call: when it was asked (Unix seconds), and ms to its answer less the model's
    time."""
    lives: Sequence[Life]
    failed: int

    def added_ms(self, *, edge: int) -> Sequence[float]:
        """What was added to each call, without the first and last `edge` of them, where there are
        more: all slots begin at once, which says nothing of a load that comes evenly."""
        inner = self.asked[edge:-edge] if len(self.asked) > 2 * edge > 0 else self.asked
        return [added for _, added in inner]


def read_rows(output: Path) -> Rows:
    """Read a JSONL output."""
    asked: list[tuple[float, float]] = []
    lives = []
    failed = 0
    with output.open("rb") as lines:
        for line in lines:
            own = json.loads(line)["warren"]
            failed += own["status"] == "failed"
            lives.append(life_of(own))
            asked += _asked(own["calls"])
    return Rows(sorted(asked, key=itemgetter(0)), lives, failed)


def _asked(calls: Sequence[Mapping[str, Any]]) -> Iterator[tuple[float, float]]:
    for call in calls:
        if call["kind"] == "model":
            took_s = call["finished_at"] - call["started_at"] - call["seconds"]
            yield call["started_at"], took_s * 1000
