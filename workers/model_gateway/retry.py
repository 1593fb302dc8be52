"""What to do about a try that failed: a pure function of the error, the tries and the time left."""

import random
from dataclasses import dataclass
from typing import Final

from broker.topology import LADDER_S
from workers.model_gateway.backend import Retryable

#: Shorter waits are spent in the slot, longer ones in the broker.
IN_SLOT_S: Final = 2.0
_FIRST_S: Final = 0.5
#: The ladder's first two rungs: most faults pass in seconds, the stubborn get the longer one.
_LONG_S: Final = 5.0
_LONGEST_S: Final = 30.0
_PATIENT_TRIES: Final = 12
#: With less than this left no try can come to an end.
_TOO_SHORT_S: Final = 0.2


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


def decide(
    error: Retryable, *, tries: int, left_s: float, chance: random.Random
) -> Wait | PutOff | GiveUp:
    """After `tries` failed tries with `left_s` to the call's deadline.

    Exponential with full jitter. `Retry-After` is the least we wait, with jitter on top, so that
    those who were sent away together do not come back together.
    """
    asked_s = error.retry_after_s
    if asked_s is None:
        longest_s = _LONG_S if tries <= _PATIENT_TRIES else _LONGEST_S
        backoff_s = chance.uniform(0, min(_FIRST_S * 2.0 ** (tries - 1), longest_s))
        delay_s = min(backoff_s, left_s / 2)
    else:
        delay_s = asked_s + chance.uniform(0, 0.1 * asked_s + 0.1)
    if tries >= error.max_tries or delay_s >= left_s or left_s <= _TOO_SHORT_S:
        return GiveUp()
    if delay_s <= IN_SLOT_S or rung_s(delay_s) >= left_s:
        return Wait(delay_s)
    return PutOff(delay_s)


def rung_s(delay_s: float) -> float:
    """How long the ladder really takes for this delay."""
    return min((s for s in LADDER_S.values() if s >= delay_s), default=max(LADDER_S.values()))
