"""Endpoints whose engines tell nothing: how many requests they get, by how long answers take."""

import heapq
import random
from collections.abc import Callable

import pytest

from workers.model_gateway.congestion import Congestion
from workers.model_gateway.slots import Slots

CEILING = 256
FLOOR = 32
Answer = Callable[[int], tuple[float, int]]
"""From the calls in flight to an answer's seconds and tokens."""


class Served:
    """An endpoint with more calls than it can take, in time that stands still but for answers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(
            "workers.model_gateway.congestion.time.monotonic", lambda: self.now, raising=True
        )
        self.slots = Slots(CEILING)
        self._congestion = Congestion(self.slots)
        self._congestion.follow_latency()
        self._flying: list[tuple[float, float, int]] = []

    def run(self, seconds: float, answer: Answer, calls: int = 10_000) -> list[int]:
        """Keep so many calls there, within the limit; the limit after each answer."""
        limits, end = [], self.now + seconds
        while self.now < end:
            while len(self._flying) < min(self.slots.limit, calls):
                took, tokens = answer(len(self._flying) + 1)
                heapq.heappush(self._flying, (self.now + took, took, tokens))
            self.slots._held = len(self._flying)
            self.now, took, tokens = heapq.heappop(self._flying)
            self._congestion.answered(throttled=False, seconds=took, tokens=tokens)
            limits.append(self.slots.limit)
        return limits


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Served:
    return Served(monkeypatch)


def lengths(speed: float = 50.0, *, usage: bool = True, most: int = 2000) -> Answer:
    """Answers of all lengths at so many tokens a second, one in twenty twenty times slower."""
    chance = random.Random(4)

    def answer(_: int) -> tuple[float, int]:
        tokens = chance.randint(1, most)
        slow = 20 if chance.random() < 0.05 else 1
        return slow * tokens / speed, tokens if usage else 0

    return answer


@pytest.mark.parametrize("knee", [40, 55])
@pytest.mark.parametrize("usage", [True, False])
def test_the_limit_settles_near_where_more_calls_make_nothing_faster(
    served: Served, knee: int, usage: bool
) -> None:
    chance = random.Random(4)

    def answer(held: int) -> tuple[float, int]:
        tokens = chance.randint(300, 500)
        return tokens / 100 * max(held / knee, 1.0), tokens if usage else 0

    assert set(served.run(60, answer, calls=FLOOR)) == {CEILING}, "a run begins"
    limits = served.run(2000, answer)
    settled = limits[len(limits) // 2 :]
    assert knee < min(settled)
    assert max(settled) < 4 * knee


@pytest.mark.parametrize("usage", [True, False])
def test_a_server_of_constant_speed_is_never_throttled(served: Served, usage: bool) -> None:
    for calls in (FLOOR, 10_000):
        assert set(served.run(2000, lengths(usage=usage), calls)) == {CEILING}


def test_shorter_and_longer_answers_are_not_taken_for_a_faster_and_slower_server(
    served: Served,
) -> None:
    served.run(300, lengths(most=20))
    assert set(served.run(1000, lengths(most=4000))) == {CEILING}
    assert set(served.run(300, lengths(most=20))) == {CEILING}


def test_a_server_that_others_slow_down_is_tried_with_less_and_then_left_alone(
    served: Served,
) -> None:
    served.run(500, lengths(most=200), calls=FLOOR)
    slower = served.run(6000, lengths(speed=5, most=200))
    assert FLOOR <= min(slower) < CEILING
    assert slower[-1] == CEILING


def test_too_many_requests_still_count(served: Served) -> None:
    served.run(500, lengths())
    for _ in range(30):
        served.now += 1
        for _ in range(20):
            served._congestion.answered(throttled=True)
    assert served.slots.limit == FLOOR
