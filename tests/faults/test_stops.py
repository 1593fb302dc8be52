"""SIGTERM under load: every kind of worker ends within seconds, and the work goes on elsewhere."""

import signal

import pytest

from tests.support.cluster import EXIT_S, KINDS, Cluster

TASKS = 200
FEW = 48


def test_every_kind_gives_back_what_it_has_and_the_work_goes_on(warren: Cluster) -> None:
    spare = warren.start("sink")
    warren.model.slow = dict.fromkeys(range(0, FEW, 5), 3.0)  # longer than the grace
    run = warren.enqueue(FEW)
    warren.answered(FEW // 4)
    for kind in KINDS:
        warren.stop(warren.living(kind)[0])
    assert spare[0].alive
    run.check()


@pytest.mark.faults
def test_sigterm_ends_every_kind_while_broker_and_store_are_away(warren: Cluster) -> None:
    workers = [worker for kind in KINDS for worker in warren.living(kind)]
    warren.rabbitmq.kill()
    warren.redis.kill()
    for worker in workers:
        worker.signal(signal.SIGTERM)
    for worker in workers:
        worker.process.wait(30)  # not the ten minutes for which either may be away
    warren.redis.restart()
    warren.rabbitmq.restart()
    for worker in workers:
        warren.ended(worker)


@pytest.mark.faults
@pytest.mark.parametrize("kind", KINDS)
def test_sigterm_under_load(warren: Cluster, kind: str) -> None:
    warren.model.slow = dict.fromkeys(range(0, TASKS, 10), 3.0)  # longer than the grace
    run = warren.enqueue(TASKS)
    warren.answered(TASKS // 2)
    stopping = warren.living(kind)[0]
    if kind == "sink":
        warren.start("sink")
    seconds = warren.stop(stopping)
    assert seconds < EXIT_S
    if kind != "sink":
        warren.back_to_work(run)
    run.check()
