"""SIGTERM under load: every kind of worker ends within seconds, and the work goes on elsewhere."""

import pytest

from tests.support.cluster import EXIT_S, KINDS, Cluster

TASKS = 200


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
        warren.back_to_work()
    run.check(again=TASKS // 10 if kind == "model" else 0)  # longer than its grace
