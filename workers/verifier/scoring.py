"""From reward functions to a verdict: weighted, named components that sum to the reward.

Whatever a verifier does wrong gives `reward: null` and an error that names it, never a zero.
"""

import functools
import math
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

import msgspec

from broker import codec
from broker.messages import ModelResult, Task, Trajectory, Usage, Verdict
from broker.trajectory import forest, main_items
from workers.rewards import PackedRollout, Scored, evaluate, rollout_with, unpack_rollout
from workers.spec import EnvironmentSpec, RewardSpec, Rollout, VerifierContext

#: No reward function may take longer, whatever it says of itself.
SCORE_TIMEOUT_S: Final = 3600.0

Evaluate = Callable[[RewardSpec], Awaitable[Scored]]
"""Runs one reward function, wherever that is. Raises only what is not a verifier's fault."""


class Unscored:
    """A finished rollout as its rewards see it: each one its own, whatever another does to it."""

    def __init__(self, trajectory: Trajectory, task: Task) -> None:
        """Raises Undecodable where the trajectory contradicts itself."""
        nodes = forest(trajectory.calls)
        said = main_items(trajectory, nodes)
        results = [n.result for n in nodes.values() if isinstance(n.result, ModelResult)]
        self._prompt = said[: trajectory.prompt_items]
        self._output = said[trajectory.prompt_items :]
        self._without_items = PackedRollout(
            rollout_id=task.rollout_id,
            row=task.row,
            prompt=b"",
            output=b"",
            status=trajectory.status,
            error=trajectory.error,
            state=trajectory.state,
            steps=len(results),
            usage=total_usage(results),
        )

    @functools.cached_property
    def packed(self) -> PackedRollout:
        """For rewards that run elsewhere."""
        return msgspec.structs.replace(
            self._without_items,
            prompt=codec.pack(self._prompt),
            output=codec.pack(self._output),
        )

    def rollout(self, spec: EnvironmentSpec) -> Rollout:
        """For a reward that runs here. Raises ValueError where its state can't be read."""
        if len(spec.rewards) > 1:
            return unpack_rollout(self.packed, spec)
        # nobody else will look at what this one gets
        return rollout_with(self._prompt, self._output, self._without_items, spec)


def total_usage(results: Iterable[ModelResult]) -> Usage:
    """Tokens and money over all model calls."""
    prompt = generated = cached = reasoning = 0
    cost_usd = 0.0
    for result in results:
        used = result.usage
        prompt += used.prompt_tokens
        generated += used.generated_tokens
        cached += used.cached_tokens
        reasoning += used.reasoning_tokens
        cost_usd += used.cost_usd
    return Usage(
        prompt_tokens=prompt,
        generated_tokens=generated,
        cached_tokens=cached,
        reasoning_tokens=reasoning,
        cost_usd=cost_usd,
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
