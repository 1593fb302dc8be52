"""From reward functions to a verdict: weighted, named components that sum to the reward.

Whatever a verifier does wrong gives `reward: null` and an error that names it, never a zero.
"""

import asyncio
import math
import time
import traceback
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from broker import codec
from broker.messages import Failure, ModelResult, Task, Trajectory, Usage, Verdict
from broker.trajectory import Node, forest, main_transcript
from workers.spec import EnvironmentSpec, RewardSpec, Rollout, VerifierContext
from workers.verifier.judge import OURS, cause_of

#: A reward function that takes longer is stopped; judges have their calls' own deadlines within it.
SCORE_TIMEOUT_S: Final = 600.0
_TRACEBACK_LINES: Final = 8


class BadReward(Exception):
    """A reward function returned something that is no reward."""


def rollout_of(trajectory: Trajectory, task: Task, spec: EnvironmentSpec) -> Rollout:
    """What reward functions see. Raises Undecodable where the trajectory contradicts itself."""
    nodes = forest(trajectory.calls)
    said = [entry.item for entry in main_transcript(trajectory, nodes)]
    row: Mapping[str, Any] = msgspec.json.decode(task.row, type=dict[str, Any])
    stateful = spec.state is not None and bool(trajectory.state)
    return Rollout(
        rollout_id=task.rollout_id,
        task=row,
        prompt=said[: trajectory.prompt_items],
        output=said[trajectory.prompt_items :],
        status=trajectory.status,
        error=trajectory.error,
        state=spec.state.unpack(trajectory.state) if spec.state and stateful else None,
        session=codec.unpack(trajectory.session) if trajectory.session else None,
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
    """Run all reward functions. Raises only what is not a verifier's fault."""
    started = time.monotonic()
    components: list[tuple[str, float]] = []
    for reward in spec.rewards:
        try:
            async with asyncio.timeout(timeout_s):
                value = _checked(await reward.run(rollout, ctx), reward, spec.reward_range)
        except TimeoutError:
            failure = _failure(reward, f"no reward within {timeout_s:g} s")
            return Verdict(reward=None, error=failure, seconds=time.monotonic() - started)
        except Exception as e:
            cause = cause_of(e)
            if isinstance(cause, OURS):
                raise cause from e
            failure = _raised(reward, cause)
            return Verdict(reward=None, error=failure, seconds=time.monotonic() - started)
        components.append((reward.name, value * reward.weight))
    return Verdict(
        reward=math.fsum(value for _, value in components) if components else None,
        components=tuple(components),
        seconds=time.monotonic() - started,
    )


def _checked(value: object, reward: RewardSpec, allowed: tuple[float, float]) -> float:
    if isinstance(value, bool):
        value = float(value)
    if not isinstance(value, int | float):
        raise BadReward(f"returned {type(value).__name__} {str(value)[:80]!r}, not a number")
    if not math.isfinite(value):
        raise BadReward(f"returned {value}")
    low, high = allowed
    if not low <= value <= high:
        raise BadReward(
            f"returned {value:g}, outside of the environment's reward_range {low:g}..{high:g}"
        )
    return float(value)


def _failure(reward: RewardSpec, message: str, where: str = "") -> Failure:
    return Failure(kind="verifier", message=f"reward {reward.name!r}: {message}", where=where)


def _raised(reward: RewardSpec, error: BaseException) -> Failure:
    if isinstance(error, BadReward):
        return _failure(reward, str(error))
    lines = traceback.format_exception(error)
    where = "".join(lines[-_TRACEBACK_LINES:]).strip()
    return _failure(reward, f"{type(error).__name__}: {error}", where)
