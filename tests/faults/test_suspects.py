"""Code of the user's that ends its process each time costs its own rollout, not its neighbours."""

from pathlib import Path

import pytest

from tests.support.cluster import cluster
from tests.support.services import Container, RabbitProcess, RedisProcess

TASKS = 60


@pytest.mark.faults
@pytest.mark.timeout(300)
def test_code_that_ends_its_process_costs_its_own_rollout(
    tmp_path: Path,
    killable_rabbitmq: RabbitProcess | Container,
    killable_redis: RedisProcess | Container,
) -> None:
    with cluster(tmp_path, killable_rabbitmq, killable_redis, "poison") as warren:
        warren.start("agent", "tool", "model", "verifier", "sink", keep=True)
        warren.start("agent", "tool", "verifier", keep=True)
        run = warren.enqueue(TASKS)
        run.check(200, failed={3: "agent"}, unscored={11, 13})
