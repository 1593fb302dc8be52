"""As `lookup`, but the reward is a judge's: three votes, asked for one after the other."""

from warren import Environment, Rollout, VerifierContext

env = Environment("judged", judge_model="judge")

VOTES = 3


@env.tool(effect="pure")
async def look_up(number: int) -> str:
    """Seven times the number."""
    return str(number * 7)


@env.reward
async def correct(rollout: Rollout, ctx: VerifierContext) -> float:
    """Never 0, so that a 0 is a bug."""
    number, run = int(rollout.task["number"]), rollout.task["run"]
    for vote in range(VOTES):
        assert await ctx.judge(f"Is judge {number} vote {vote} of {run} content?") == "yes"
    return 0.25 + (number % 4) / 4 * 0.75
