"""kill -9 of every worker kind under load: nothing lost, nothing twice, no call made again."""

import random

import pytest

from tests.support.cluster import KINDS, Cluster

TASKS = 160
FEW = 60


def test_each_kind_of_worker_dies_once_at_a_seeded_moment(warren: Cluster) -> None:
    chance = random.Random(3)
    run = warren.enqueue(FEW)
    kinds = chance.sample(KINDS, len(KINDS))
    for kind, share in zip(kinds, sorted(chance.uniform(0.1, 0.9) for _ in kinds), strict=True):
        warren.answered(int(share * 2 * FEW))
        warren.kill(warren.living(kind)[0])
        if kind == "sink":  # there are two of the others
            warren.start(kind)
    run.check()


@pytest.mark.faults
def test_an_undisturbed_run_has_a_row_for_every_task(warren: Cluster) -> None:
    warren.enqueue(TASKS).check()


#: Place -> which kind of worker passes it.
PLACES = {
    "agent.after_take": "agent",
    "owner.after_publish": "agent",
    "owner.after_reply": "agent",
    "agent.after_trajectory": "agent",
    "agent.after_ended": "agent",
    "executor.after_begin": "tool",
    "executor.after_work": "tool",
    "executor.after_finish": "tool",
    "executor.after_reply": "tool",
    "verifier.after_score": "verifier",
    "verifier.after_verdict": "verifier",
    "verifier.after_publish": "verifier",
    "sink.after_link": "sink",
    "sink.before_mark": "sink",
    "sink.before_ack": "sink",
}


SEEDED = "executor.after_finish"


@pytest.mark.parametrize(
    "place",
    [SEEDED, *[pytest.param(p, marks=pytest.mark.faults) for p in PLACES if p != SEEDED]],
)
def test_death_between_two_steps(warren: Cluster, place: str) -> None:
    kind = PLACES[place]
    hit = 2 if kind == "sink" else 20
    if kind == "sink":
        warren.kill(warren.living("sink")[0])
    doomed = warren.start(kind, WARREN_CRASHPOINT=f"{place}:{hit}")[0]
    run = warren.enqueue(FEW if place == SEEDED else TASKS)
    warren.until(lambda: not doomed.alive)
    assert doomed.process.returncode == 137
    if kind == "sink":
        warren.start("sink")
    run.check()


@pytest.mark.faults
@pytest.mark.parametrize("step", ["begin", "work", "finish", "reply"])
def test_a_gateway_dies_between_two_steps(warren: Cluster, step: str) -> None:
    doomed = warren.start("model", WARREN_CRASHPOINT=f"executor.after_{step}:20")[0]
    run = warren.enqueue(TASKS)
    warren.until(lambda: not doomed.alive)
    warren.ended(doomed)
    run.check()


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(3))
def test_workers_of_every_kind_die_at_random_moments(warren: Cluster, seed: int) -> None:
    chance = random.Random(seed)
    run = warren.enqueue(2 * TASKS)
    for share in sorted(chance.uniform(0.1, 0.9) for _ in range(6)):
        warren.answered(int(share * 4 * TASKS))
        kind = chance.choice(KINDS)
        warren.kill(warren.living(kind)[0])
        warren.start(kind)
    run.check()
