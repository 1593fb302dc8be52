"""Rollouts that end their worker's process, beside harmless ones."""

import os
import signal
import time

from warren import AgentTask, Context, Environment, Rollout, tool_loop

env = Environment("poison")


@env.tool(effect="pure")
async def look_up(number: int) -> str:
    """Seven times the number; some numbers are too much for the process."""
    if number == 7:
        os._exit(9)
    return str(number * 7)


@env.agent
async def agent(ctx: Context, task: AgentTask) -> None:
    """Two steps, unless the task says that it ends its process."""
    if task.row["number"] == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    await tool_loop(ctx, task)


@env.reward(timeout_s=5.0)
def correct(rollout: Rollout) -> float:
    """Never 0, so that a 0 is a bug."""
    number = int(rollout.task["number"])
    if number == 11:
        os._exit(9)
    if number == 13:
        time.sleep(3600)
    return 0.25 + (number % 4) / 4 * 0.75
