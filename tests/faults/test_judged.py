"""A verifier dies between the votes of a judge: those that were given are not asked for again."""

import random

import pytest

from tests.faults.environments.judged import VOTES
from tests.support.cluster import Cluster
from tests.support.oracle import STEPS

TASKS = 40
FEW = 24


@pytest.mark.parametrize(
    "seed", [0, *[pytest.param(s, marks=pytest.mark.faults) for s in (1, 2, 3)]]
)
def test_a_verifier_is_killed_between_judge_votes(warren: Cluster, seed: int) -> None:
    chance = random.Random(seed)
    calls = STEPS + VOTES
    tasks = TASKS if seed else FEW
    run = warren.enqueue(tasks, game="judged", steps=calls)
    for share in sorted(chance.uniform(0.5, 0.95) for _ in range(2)):
        warren.answered(int(share * calls * tasks))
        warren.kill(warren.living("verifier")[0])
        warren.start("verifier")
    run.check()


@pytest.mark.faults
def test_a_gateway_and_a_verifier_are_killed_between_judge_votes(warren: Cluster) -> None:
    calls = STEPS + VOTES
    run = warren.enqueue(TASKS, game="judged", steps=calls)
    warren.answered(int(0.7 * calls * TASKS))
    for kind in ("model", "verifier"):
        warren.kill(warren.living(kind)[0])
        warren.start(kind)
    run.check()
