"""RabbitMQ and Redis die, stall and forget under load."""

import time
from collections.abc import Callable

import pytest

from tests.support.cluster import Cluster, RabbitServer

TASKS = 100


def _kill(rabbitmq: RabbitServer) -> None:
    rabbitmq.kill()
    rabbitmq.start()


def _restart(rabbitmq: RabbitServer) -> None:
    rabbitmq.stop()
    rabbitmq.start()


@pytest.mark.parametrize(
    "how", [_kill, pytest.param(_restart, marks=pytest.mark.faults)], ids=["kill", "restart"]
)
def test_the_broker_restarts_under_load(
    warren: Cluster, how: Callable[[RabbitServer], None]
) -> None:
    run = warren.enqueue(TASKS)
    warren.answered(TASKS // 2)
    how(warren.rabbitmq)
    warren.back_to_work(run)
    run.check()


def test_redis_is_killed_under_load(warren: Cluster) -> None:
    run = warren.enqueue(TASKS)
    warren.answered(TASKS // 2)
    warren.redis.kill()
    warren.until(lambda: warren.model.in_flight == 0)
    warren.redis.start()
    warren.back_to_work(run)
    run.check()


def test_redis_forgets_everything_under_load(warren: Cluster) -> None:
    run = warren.enqueue(TASKS)
    warren.answered(TASKS // 2)
    warren.redis_say("FLUSHALL")
    warren.back_to_work(run)
    run.check()


@pytest.mark.faults
def test_redis_comes_back_empty(warren: Cluster) -> None:
    run = warren.enqueue(TASKS)
    warren.answered(TASKS // 2)
    warren.redis.kill()
    warren.redis.forget()
    warren.back_to_work(run)
    run.check()


@pytest.mark.faults
@pytest.mark.timeout(300)
def test_redis_is_away_for_longer_than_anybody_waits_for_it(warren: Cluster) -> None:
    """Operations are tried again for 60 s; then deliveries are given back and taken again."""
    run = warren.enqueue(TASKS)
    warren.answered(TASKS // 2)
    warren.redis.kill()
    time.sleep(75)  # the fault itself
    warren.redis.start()
    run.check()
