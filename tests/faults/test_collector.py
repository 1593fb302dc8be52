"""The collector is killed and its command typed again: the same rows, no finished call repeated."""

import random

import pytest

from tests.support.cluster import Cluster

TASKS = 200
FEW = 48
EMBEDDED = {"WARREN_BROKER": "", "WARREN_REDIS": ""}


def test_a_collector_over_rabbitmq_goes_on_after_kill_9(warren: Cluster) -> None:
    run = warren.collect(FEW, "--workers", "external")
    warren.answered(FEW // 2)
    warren.kill_command(run)
    warren.go_on(run)
    run.check()


def test_an_embedded_collector_goes_on_after_kill_9(warren: Cluster) -> None:
    run = warren.collect(FEW, "--concurrency", "16", variables=EMBEDDED)
    warren.answered(FEW)
    warren.kill_command(run)
    warren.go_on(run)
    run.check()


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(3))
def test_a_collector_that_dies_again_and_again(warren: Cluster, seed: int) -> None:
    chance = random.Random(seed)
    run = warren.collect(TASKS, "--concurrency", "16", variables=EMBEDDED if seed % 2 else {})
    for share in sorted(chance.uniform(0.1, 0.95) for _ in range(3)):
        warren.answered(int(share * 2 * TASKS))
        warren.kill_command(run)
        warren.go_on(run)
    run.check()


@pytest.mark.faults  # the seeded torn tail: tests/system/test_resume.py
@pytest.mark.parametrize("variables", [EMBEDDED, {}], ids=["embedded", "redis"])
def test_a_row_that_was_torn_after_it_was_durable_is_collected_again(
    warren: Cluster, variables: dict[str, str]
) -> None:
    run = warren.collect(FEW, "--concurrency", "16", variables=variables)
    warren.until(lambda: len(run.rows()) > FEW // 4)
    warren.kill_command(run)
    whole = run.output.read_bytes()
    run.output.write_bytes(whole[:-100])
    warren.go_on(run)
    run.check(again=2)


@pytest.mark.faults
@pytest.mark.parametrize("place", ["publisher.after_publish", "sink.after_fsync"])
def test_a_collector_dies_between_two_steps(warren: Cluster, place: str) -> None:
    hit = 50 if place.startswith("publisher") else 2
    armed = {"WARREN_CRASHPOINT": f"{place}:{hit}"}
    run = warren.collect(TASKS, "--workers", "external", variables=armed)
    warren.until(lambda: run.process.poll() is not None)
    assert run.process.returncode == 137
    warren.go_on(run)
    run.check()
