"""As `lookup`, but what was looked up stands in the rollout's state, which is what is scored."""

import asyncio

from warren import Environment, Rollout

env = Environment("ledger")


@env.setup
def ledger() -> dict[str, list[int]]:
    return {"seen": []}


@env.tool
async def look_up(state: dict[str, list[int]], number: int) -> str:
    """Seven times the number."""
    state["seen"].append(number)
    await asyncio.sleep(0.3)  # so that a killed worker has some in hand
    return str(number * 7)


@env.reward
def correct(rollout: Rollout) -> float:
    """Never 0, so that a 0 is a bug."""
    number = int(rollout.task["number"])
    assert rollout.state == {"seen": [number]}, rollout.state
    return 0.25 + (number % 4) / 4 * 0.75
