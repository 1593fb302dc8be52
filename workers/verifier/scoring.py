"""From reward functions to a verdict: weighted, named components that sum to the reward.

Whatever a verifier does wrong gives `reward: null` and an error that names it, never a zero.
"""

import math
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from broker import codec
from broker.messages import ModelResult, Task, Trajectory, Usage, Verdict
from broker.trajectory import Node, forest, main_transcript
from workers.rewards import PackedRollout, Scored, evaluate
from workers.spec import EnvironmentSpec, RewardSpec, Rollout, VerifierContext

#: No reward function may take longer, whatever it says of itself.
SCORE_TIMEOUT_S: Final = 3600.0

Evaluate = Callable[[RewardSpec], Awaitable[Scored]]
"""Runs one reward function, wherever that is. Raises only what is not a verifier's fault."""


def rollout_of(trajectory: Trajectory, task: Task) -> PackedRollout:
    """What reward functions see. Raises Undecodable where the trajectory contradicts itself."""
    nodes = forest(trajectory.calls)
    said = [entry.item for entry in main_transcript(trajectory, nodes)]
    return PackedRollout(
        rollout_id=task.rollout_id,
        row=task.row,
        prompt=codec.pack(said[: trajectory.prompt_items]),
        output=codec.pack(said[trajectory.prompt_items :]),
        status=trajectory.status,
        error=trajectory.error,
        state=trajectory.state,
        steps=sum(isinstance(node.result, ModelResult) for node in nodes.values()),
        usage=total_usage(nodes),
    )


def total_usage(nodes: Mapping[str, Node]) -> Usage:
    """Tokens and money over all model calls."""
    used = [node.result.usage for node in nodes.values() if isinstance(node.result, ModelResult)]
    return Usage(
        prompt_tokens=sum(u.prompt_tokens for u in used),
        generated_tokens=sum(u.generated_tokens for u in used),
        cached_tokens=sum(u.cached_tokens for u in used),
        reasoning_tokens=sum(u.reasoning_tokens for u in used),
        cost_usd=sum(u.cost_usd for u in used),
    )


async def score(
    spec: EnvironmentSpec, rollout: Rollout, ctx: VerifierContext, timeout_s: float
) -> Verdict:
    """Run all reward functions in this process. Raises only what is not a verifier's fault."""

    async def here(reward: RewardSpec) -> Scored:
        return await evaluate(spec, reward, rollout, ctx, timeout_s)

    return await verdict_of(spec, here)


async def verdict_of(spec: EnvironmentSpec, evaluate: Evaluate) -> Verdict:
    """Run all reward functions, each as `evaluate` does; the first failure ends the verdict."""
    started = time.monotonic()
    components: list[tuple[str, float]] = []
    for reward in spec.rewards:
        scored = await evaluate(reward)
        if scored.value is None:
            seconds = time.monotonic() - started
            return Verdict(reward=None, error=scored.error, seconds=seconds)
        components.append((reward.name, scored.value * reward.weight))
    return Verdict(
        reward=math.fsum(value for _, value in components) if components else None,
        components=tuple(components),
        seconds=time.monotonic() - started,
    )
