"""RabbitMQ is killed and has forgotten every call: each is made all the same, and none twice.

Every wait here ends after `PATIENCE_S` (2 min) at the latest, long before a call's deadline, which
is 20 min.
"""

import random

import pytest

from tests.support.cluster import KINDS, Cluster
from tests.support.runs import Run, Worker

TASKS = 48
#: Calls that a gateway takes at once; the others wait in the broker.
SLOTS = 8
FOR_EVER_S = 600.0


def _with_calls_queued_and_begun(warren: Cluster, latency_s: float) -> tuple[Run, list[Worker]]:
    """A run whose calls are in two gateways' hands, and in the broker; the model becomes quick."""
    for worker in warren.living("model"):
        warren.kill(worker)
    gateways = warren.start("model", "model", prefetch=SLOTS)
    warren.model.latency_s = latency_s
    run = warren.enqueue(TASKS)
    warren.until(lambda: warren.model.in_flight >= 2 * SLOTS and _queued(warren) > SLOTS)
    warren.model.latency_s = 0.1
    return run, gateways


def _queued(warren: Cluster) -> int:
    lines = warren.rabbitmq.ctl("list_queues", "name", "messages_ready").splitlines()
    counts = [line.partition("\t") for line in lines]
    return sum(int(n) for name, _, n in counts if ".model." in name and n.isdigit())


def _in_hand(warren: Cluster, gateway: Worker) -> int:
    return sum(a.gateway == gateway.name and a.answered_at is None for a in warren.model.asks)


def test_calls_that_a_restarted_broker_forgot_are_made_and_those_in_hand_not_again(
    warren: Cluster,
) -> None:
    run, _ = _with_calls_queued_and_begun(warren, 10.0)
    warren.rabbitmq.restart()
    run.check()


def test_calls_go_on_though_broker_and_gateways_and_agents_are_killed(warren: Cluster) -> None:
    run, (doomed, later) = _with_calls_queued_and_begun(warren, FOR_EVER_S)
    agents = warren.living("agent")
    warren.rabbitmq.kill()
    warren.kill(doomed)
    warren.rabbitmq.start()
    warren.start("model", "agent")
    warren.until(lambda: all(agent.said("reconnected") for agent in agents))
    warren.answered(SLOTS)
    # what this one has in hand is in no queue any more; the agents' rollouts are taken over before
    # its lease is out, so that their new owner's copies find claims that hold
    assert _in_hand(warren, later)
    for worker in (later, *agents):
        warren.kill(worker)
    run.check()


def _kill_everything(warren: Cluster, run: Run) -> None:
    warren.rabbitmq.kill()
    for worker in [w for kind in KINDS for w in warren.living(kind)]:
        warren.kill(worker)
    warren.kill_command(run)
    warren.redis.kill()


def _start_everything(warren: Cluster, run: Run) -> None:
    warren.redis.start()
    warren.rabbitmq.start()
    warren.start(*KINDS)
    warren.go_on(run)


def test_the_whole_machine_is_killed_and_started_again(warren: Cluster) -> None:
    run, _ = _with_calls_queued_and_begun(warren, FOR_EVER_S)
    _kill_everything(warren, run)
    _start_everything(warren, run)
    run.check()


@pytest.mark.faults
@pytest.mark.parametrize("seed", [1, 2])
def test_the_whole_machine_is_killed_at_random_moments(warren: Cluster, seed: int) -> None:
    chance = random.Random(seed)
    run = warren.enqueue(2 * TASKS)
    for share in sorted(chance.uniform(0.1, 0.9) for _ in range(2)):
        warren.answered(int(share * 4 * TASKS))
        _kill_everything(warren, run)
        _start_everything(warren, run)
    run.check()
