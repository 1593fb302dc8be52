"""Two model calls and one tool call per rollout; what becomes of it depends on the task alone."""

import asyncio

from warren import Environment, Rollout

env = Environment("lookup", system_prompt="Look the number up, then say what you were told.")


@env.tool(effect="pure")
async def look_up(number: int) -> str:
    """Seven times the number."""
    await asyncio.sleep(0.02)
    return str(number * 7)


@env.reward
def correct(rollout: Rollout) -> float:
    """Never 0, so that a 0 is a bug."""
    number = int(rollout.task["number"])
    assert rollout.answer == str(number * 7), rollout.answer
    return 0.25 + (number % 4) / 4 * 0.75
