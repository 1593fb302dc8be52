"""Tool workers die in the middle of stateful rollouts: the rewards are the undisturbed ones."""

from pathlib import Path

import pytest

from tests.support.cluster import cluster
from tests.support.services import Container, RabbitProcess, RedisProcess

TASKS = 60


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("environment", "again"),
    [
        ("ledger", 0),
        pytest.param("till", 4 * TASKS, marks=pytest.mark.faults),  # attempts ask anew
    ],
)
def test_rewards_survive_killed_tool_workers(
    tmp_path: Path,
    killable_rabbitmq: RabbitProcess | Container,
    killable_redis: RedisProcess | Container,
    environment: str,
    again: int,
) -> None:
    with cluster(tmp_path, killable_rabbitmq, killable_redis, environment) as warren:
        warren.start("agent", "model", "verifier", "sink", "tool", "tool")
        run = warren.enqueue(TASKS)
        for share in (3, 6) if environment == "ledger" else (3,):
            warren.answered(TASKS * share // 6)
            warren.kill(warren.living("tool")[0])
            warren.start("tool")
        run.check(120, again=again)
