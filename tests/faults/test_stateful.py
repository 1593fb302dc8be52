"""Tool workers die in the middle of stateful rollouts: the rewards are the undisturbed ones."""

import pytest

from tests.support.cluster import Cluster

TASKS = 40
FEW = 24


def test_stored_state_survives_killed_tool_workers(warren: Cluster) -> None:
    run = warren.enqueue(FEW, game="ledger")
    for answers in (FEW // 2, FEW):
        warren.answered(answers)
        warren.kill(warren.living("tool")[0])
        warren.start("tool")
    run.check()


@pytest.mark.faults
def test_a_session_that_died_with_its_worker_is_an_attempt_anew(warren: Cluster) -> None:
    run = warren.enqueue(TASKS, game="till")
    warren.answered(TASKS // 2)
    warren.kill(warren.living("tool")[0])
    warren.start("tool")
    run.check(again=2 * TASKS)  # attempts ask anew
