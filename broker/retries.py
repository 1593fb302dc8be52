"""What to do after a failure: one pure function for every kind of failure there is.

    decide(patience, tries, time left, what the other side asked for) -> Wait | PutOff | GiveUp

A model's refusal, a store that is away and an error that nobody expected differ by their
`Patience` alone. Short waits are spent in the slot, long ones on the broker's ladder (topology.py).
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from broker.topology import LADDER_S

#: With less than this left no try can come to an end.
_TOO_SHORT_S: Final = 0.2
#: Who was told when to come back comes up to this part later: not all at the same moment.
_SPREAD: Final = 0.1


@dataclass(frozen=True, slots=True)
class Patience:
    """How often, and after which waits, one kind of failure is tried again."""

    most_tries: float = math.inf
    """This many failed tries are the last."""
    least_s: float = 0.0
    """Every wait is at least this long."""
    first_s: float = 0.0
    """The jitter's span after the first failure; it doubles with each."""
    longest_s: Sequence[float] = (0.0,)
    """At most this span: the first number for the first `calm_tries`, the last one beyond."""
    calm_tries: int = 12
    in_slot_s: float = 0.0
    """Waits up to this long are spent in the slot."""

    def span_s(self, tries: int) -> float:
        """How far the wait after so many failures may go beyond `least_s`."""
        longest_s = self.longest_s[0 if tries <= self.calm_tries else -1]
        return min(self.first_s * 2.0 ** min(tries - 1, 64), longest_s)


@dataclass(frozen=True, slots=True)
class Wait:
    """Sleep here, then try again."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class PutOff:
    """Go round the ladder, then try again."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The tries or the time are used up."""


#: An error that nobody expected: ours, or one of code that we run.
UNEXPECTED: Final = Patience(most_tries=3, least_s=5.0)
#: The journal's store does not answer: nobody's fault, so the message goes back, in the end.
STORE_AWAY: Final = Patience(least_s=0.5, first_s=1.0, longest_s=(1.0,), in_slot_s=2.0)


def decide(
    patience: Patience,
    *,
    tries: int,
    left_s: float = math.inf,
    asked_s: float | None = None,
    chance: random.Random,
) -> Wait | PutOff | GiveUp:
    """After `tries` failed tries (at least 1), with `left_s` to the deadline.

    Exponential with full jitter. `asked_s` (`Retry-After`) is the least we wait, with jitter on
    top, so that those who were sent away together do not come back together; who asks for no wait
    gets ours.
    """
    backoff_s = chance.uniform(0, patience.span_s(tries))
    delay_s = patience.least_s + min(backoff_s, left_s / 2)
    if asked_s is not None:
        delay_s = max(asked_s + chance.uniform(0, _SPREAD * asked_s + _SPREAD), delay_s)
    if tries >= patience.most_tries or delay_s >= left_s or left_s <= _TOO_SHORT_S:
        return GiveUp()
    if delay_s <= patience.in_slot_s or LADDER_S[rung(delay_s)] >= left_s:
        return Wait(delay_s)
    return PutOff(delay_s)


def rung(delay_s: float) -> str:
    """The ladder's rung for this delay: the shortest that is long enough, else the longest."""
    enough = [name for name, seconds in LADDER_S.items() if seconds >= delay_s]
    return min(enough, key=LADDER_S.__getitem__, default=max(LADDER_S, key=LADDER_S.__getitem__))
