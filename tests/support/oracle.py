"""The oracle of all fault tests: what must be true of a run, whatever happened to it.

Every accepted rollout has one row, with the reward that an undisturbed run gives it; `audit` finds
the files sound; and the model was asked for every step once, or once more for each gateway that
ended with the step in hand: asked for, and in no journal when that gateway was dead. So an answer
that a gateway had recorded is never asked for again, nor is one that is out at a living gateway.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tests.support.model_server import Asked, ModelServer, Step
from tests.support.recorded import Recorded

STEPS = 2
"""Model calls of a rollout in most test environments."""


def expected_reward(number: int) -> float:
    """What the test environments give."""
    return 0.25 + (number % 4) / 4 * 0.75


def check_rows(
    rows: Iterable[Mapping[str, Any]], failed: Mapping[int, str], unscored: Collection[int]
) -> None:
    """`failed`: number of a task -> the kind of its error; `unscored`: the verifier fails."""
    for row in rows:
        number, own = row["warren"]["task_index"], row["warren"]
        if number in failed:
            assert own["status"] == "failed", row
            assert own["error"]["kind"] == failed[number], own["error"]
            assert row["reward"] is None
        elif number in unscored:
            assert own["error"]["kind"] == "verifier", own
            assert row["reward"] is None
        else:
            assert own["status"] == "completed", own["error"]
            assert row["reward"] == expected_reward(number), (number, own["error"])


def check_steps(model: ModelServer, run: str, tasks: Collection[int], steps: int) -> None:
    """Each of these tasks was asked for all its steps."""
    made = Counter(number for id_, number, _ in set(model.answered) if id_ == run)
    for number in tasks:
        assert made[number] == steps, f"task {number}: {made[number]} of {steps} steps"


def repeated(model: ModelServer, run: str, excused: Counter[Step]) -> Counter[Step]:
    """Steps that were asked for more often than once and once per loss of a gateway."""
    asked = Counter(ask.step for ask in model.asks if ask.step[0] == run and not ask.hung)
    return Counter(
        {step: n - 1 - excused[step] for step, n in asked.items() if n - 1 > excused[step]}
    )


@dataclass(frozen=True, slots=True)
class Ended:
    """A gateway that is dead, and what was known of one run at that moment."""

    gateway: str
    run: str
    recorded: Recorded
    again: Mapping[Step, float]
    """When others had asked for its steps by then: those were not recorded when it died."""

    @classmethod
    def now(cls, model: ModelServer, gateway: str, run: str, recorded: Recorded) -> "Ended":
        """It is dead; `recorded` was read since."""
        asks = [ask for ask in model.asks if ask.gateway != gateway and ask.step[0] == run]
        return cls(gateway, run, recorded, {ask.step: ask.at for ask in asks})

    def lost(self, model: ModelServer) -> list[Asked]:
        """What it had asked for and nobody had recorded.

        Asked late: the model may read its last requests only after it has died.
        """
        return [
            ask
            for ask in model.asks
            if (ask.gateway, ask.step[0]) == (self.gateway, self.run)
            and not ask.hung
            and (ask.step not in self.recorded or self.again.get(ask.step, 0.0) > ask.at)
        ]
