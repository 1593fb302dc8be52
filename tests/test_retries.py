"""What is done about a failure: one pure function, for providers' refusals and for our own bugs."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.retries import (
    STORE_AWAY,
    UNEXPECTED,
    GiveUp,
    Patience,
    PutOff,
    Wait,
    decide,
    rung,
)
from broker.topology import LADDER_S
from workers.model_gateway.backend import MAX_TRIES, Retryable
from workers.model_gateway.pool import AllDown

HOUR_S = 3600.0
PROVIDER = Retryable("x").patience
DOWN = AllDown("x").patience


def after(
    tries: int,
    left_s: float = HOUR_S,
    asked_s: float | None = None,
    patience: Patience = PROVIDER,
    seed: int = 1,
) -> Wait | PutOff | GiveUp:
    chance = random.Random(seed)
    return decide(patience, tries=tries, left_s=left_s, asked_s=asked_s, chance=chance)


@pytest.mark.parametrize(
    ("patience", "tries", "left_s", "decision"),
    [
        (UNEXPECTED, 1, math.inf, PutOff(5.0)),
        (UNEXPECTED, 2, math.inf, PutOff(5.0)),
        (UNEXPECTED, 3, math.inf, GiveUp()),
        (DOWN, 1, HOUR_S, PutOff(5.0)),
        (DOWN, 1000, HOUR_S, PutOff(5.0)),
        (DOWN, 1, 5.1, PutOff(5.0)),
        (DOWN, 1, 5.0, GiveUp()),
        (PROVIDER, MAX_TRIES, HOUR_S, GiveUp()),
        (Retryable("x", max_tries=2).patience, 2, HOUR_S, GiveUp()),
        (PROVIDER, 1, 0.2, GiveUp()),
    ],
)
def test_what_is_done_after_each_kind_of_failure(
    patience: Patience, tries: int, left_s: float, decision: Wait | PutOff | GiveUp
) -> None:
    assert after(tries, left_s, patience=patience) == decision


def test_who_asks_for_no_wait_is_not_asked_in_a_hurry() -> None:
    waits = [after(8, asked_s=0.0, seed=seed) for seed in range(50)]
    assert max(wait.delay_s for wait in waits if not isinstance(wait, GiveUp)) > 2.0


@given(st.integers(1, 10_000), st.integers())
def test_a_store_that_is_away_is_waited_for_in_the_slot_and_never_given_up(
    tries: int, seed: int
) -> None:
    decision = after(tries, math.inf, patience=STORE_AWAY, seed=seed)
    assert isinstance(decision, Wait)
    assert 0.5 <= decision.delay_s <= 1.5


@given(st.integers(1, MAX_TRIES - 1), st.integers())
def test_backoff_is_jittered_and_capped(tries: int, seed: int) -> None:
    decision = after(tries, seed=seed)
    assert not isinstance(decision, GiveUp)
    assert decision.delay_s <= (5.0 if tries <= 12 else 30.0)
    assert isinstance(decision, Wait) is (decision.delay_s <= 2.0)


@given(
    st.sampled_from([PROVIDER, DOWN, UNEXPECTED, STORE_AWAY]),
    st.floats(0.01, 600),
    st.integers(1, MAX_TRIES),
    st.none() | st.floats(0, 900),
    st.integers(),
)
def test_no_wait_outlasts_the_deadline_and_none_is_shorter_than_asked(
    patience: Patience, left_s: float, tries: int, asked_s: float | None, seed: int
) -> None:
    decision = after(tries, left_s, asked_s, patience, seed)
    match decision:
        case Wait(delay_s):
            assert delay_s < left_s
        case PutOff(delay_s):
            assert LADDER_S[rung(delay_s)] < left_s, "the ladder would bring it back too late"
    if isinstance(decision, Wait | PutOff):
        assert tries < patience.most_tries
        assert decision.delay_s >= (patience.least_s if asked_s is None else asked_s)


@given(st.integers(1, MAX_TRIES), st.floats(0.01, 600), st.none() | st.floats(0, 900))
def test_the_same_failure_is_always_decided_alike(
    tries: int, left_s: float, asked_s: float | None
) -> None:
    assert after(tries, left_s, asked_s) == after(tries, left_s, asked_s)


def test_retry_after_is_the_least_that_is_waited() -> None:
    decision = after(1, asked_s=7.0)
    assert isinstance(decision, PutOff)
    assert 7.0 <= decision.delay_s <= 7.9
    assert after(1, left_s=6.0, asked_s=7.0) == GiveUp()


@pytest.mark.parametrize(
    ("delay_s", "name"),
    [(0.1, "5s"), (5.0, "5s"), (5.1, "30s"), (31.0, "5m"), (9000.0, "5m")],
)
def test_the_rung_is_the_shortest_that_is_long_enough(delay_s: float, name: str) -> None:
    assert rung(delay_s) == name
