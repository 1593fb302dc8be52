"""SIGTERM under load: every kind of worker ends within seconds, and the work goes on elsewhere."""

import pytest

from tests.support.cluster import EXIT_S, KINDS, Cluster

TASKS = 200


def test_every_kind_ends_within_seconds_and_the_work_goes_on(warren: Cluster) -> None:
    run = warren.enqueue(TASKS)
    warren.model.slow = dict.fromkeys(range(0, TASKS, 10), 3.0)  # longer than the grace
    warren.answered(TASKS // 4)
    spare = warren.start("sink")
    for kind in KINDS:
        seconds = warren.stop(warren.living(kind)[0])
        assert seconds < EXIT_S, kind
    assert spare[0].alive
    warren.back_to_work(run)
    run.check(again=TASKS // 10)


@pytest.mark.faults
@pytest.mark.parametrize("kind", KINDS)
def test_sigterm_under_load(warren: Cluster, kind: str) -> None:
    run = warren.enqueue(TASKS)
    warren.model.slow = {n: 3.0 for n in range(0, TASKS, 10)}
    warren.answered(TASKS // 2)
    stopping = warren.living(kind)[0]
    if kind == "sink":
        warren.start("sink")
    seconds = warren.stop(stopping)
    assert seconds < EXIT_S
    if kind != "sink":
        warren.back_to_work(run)
    run.check(again=TASKS // 10 if kind == "model" else 0)  # longer than its grace
