"""What a trainer gets: scored rollouts with their token arrays, alone or as complete groups.

Cheap to receive: conversations and arrays are unpacked when they are first asked for, and arrays
are views on the bytes that the engine's answer travelled in.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from broker import codec, results, trajectory
from broker.errors import Undecodable
from broker.journal.runs import Totals
from broker.messages import (
    Failure,
    ModelResult,
    Status,
    Trajectory,
    Usage,
    Verdict,
    VersionSpan,
)
from broker.trajectory import Entry, Item, Node, Segment


@dataclass(frozen=True)
class FinishedRollout:
    """One scored rollout. A failed one has no reward, and may have neither items nor tokens."""

    rollout_id: str
    run: str
    generation: str
    task_index: int
    repeat: int
    attempt: int
    status: Status
    error: Failure | None
    """Why it failed: its own failure, or its verifier's."""
    reward: float | None
    """None unless a verifier returned it: never take it for 0."""
    reward_components: Mapping[str, float]
    """Weighted parts that sum to `reward`."""
    recorded: Trajectory = field(repr=False)
    """As the agent left it."""

    @property
    def group_id(self) -> str:
        """The same for all rollouts of one submitted task."""
        return f"{self.run}/{self.task_index}"

    @property
    def journal_key(self) -> str:
        return self.recorded.rollout

    @cached_property
    def prompt(self) -> list[Item]:
        """Responses items that the policy was given."""
        return [entry.item for entry in self._said[: self.recorded.prompt_items]]

    @cached_property
    def output(self) -> list[Item]:
        """What followed on the main branch: the policy's items and the tools' outputs."""
        return [entry.item for entry in self._said[self.recorded.prompt_items :]]

    @cached_property
    def segments(self) -> list[Segment]:
        """Training sequences of the main branch; more than one where the history was cut.

        Empty without recorded tokens. Each has `ids` (int32), `mask` (1: sampled by the policy)
        and `logprobs` (float32) of one length; `ids[:prompt_tokens]` is the first prompt.
        """
        if self.recorded.main is None:
            return []
        return trajectory.segments(trajectory.branch_tokens(self.nodes, self.recorded.main))

    @cached_property
    def versions(self) -> VersionSpan | None:
        """Oldest and newest policy version that wrote any of it; None where none was recorded."""
        spans = [r.versions for r in self._model_results if r.versions is not None]
        if not spans:
            return None
        return VersionSpan(min=min(s.min for s in spans), max=max(s.max for s in spans))

    @cached_property
    def nodes(self) -> Mapping[str, Node]:
        """Every call by its path (broker/trajectory.py)."""
        return trajectory.forest(self.recorded.calls)

    @cached_property
    def usage(self) -> Usage:
        """Over all model calls."""
        used = [result.usage for result in self._model_results]
        return Usage(
            prompt_tokens=sum(u.prompt_tokens for u in used),
            generated_tokens=sum(u.generated_tokens for u in used),
            cached_tokens=sum(u.cached_tokens for u in used),
            reasoning_tokens=sum(u.reasoning_tokens for u in used),
            cost_usd=sum(u.cost_usd for u in used),
        )

    @cached_property
    def _said(self) -> list[Entry]:
        return trajectory.main_transcript(self.recorded, self.nodes)

    @property
    def _model_results(self) -> list[ModelResult]:
        return [n.result for n in self.nodes.values() if isinstance(n.result, ModelResult)]


@dataclass(frozen=True, slots=True)
class RolloutGroup:
    """The rollouts of one task, whatever became of them, in the order of their repeats."""

    group_id: str
    task_index: int
    rollouts: tuple[FinishedRollout, ...]

    def __iter__(self) -> Iterator[FinishedRollout]:
        return iter(self.rollouts)

    def __len__(self) -> int:
        return len(self.rollouts)


def read_result(body: bytes, kind: str) -> FinishedRollout:
    """Unpack a result as it came. Raises WireError."""
    result = results.read_result(body, kind)
    recorded = codec.read(Trajectory, result.trajectory)
    if min(result.task_index, result.repeat) < 0:
        raise Undecodable(f"negative index in {result.rollout_id!r}")
    error = _error(recorded, result.verdict)
    scored = error is None and result.verdict.reward is not None
    return FinishedRollout(
        rollout_id=result.rollout_id,
        run=result.run,
        generation=result.generation,
        task_index=result.task_index,
        repeat=result.repeat,
        attempt=recorded.attempt,
        status=recorded.status if error is None else "failed",
        error=error,
        reward=result.verdict.reward if scored else None,
        reward_components=dict(result.verdict.components) if scored else {},
        recorded=recorded,
    )


def _error(recorded: Trajectory, verdict: Verdict) -> Failure | None:
    """Why it failed, or None: the rollout's failure first, then the verifier's."""
    if recorded.status == "failed":
        return recorded.error or Failure(kind="infra", message="failed without a reason")
    if verdict.error is None and verdict.reward is not None and not math.isfinite(verdict.reward):
        return Failure(kind="verifier", message=f"the reward is {verdict.reward}")
    return verdict.error


def totals_of(rollout: FinishedRollout) -> Totals:
    """What one rollout adds to its run's accounts."""
    failed = rollout.status == "failed"
    kind = rollout.error.kind if rollout.error is not None else "infra"
    kinds = [node.record.kind for node in rollout.nodes.values()]
    return Totals(
        completed=int(rollout.status == "completed"),
        truncated=int(rollout.status == "truncated"),
        failed=int(failed),
        failed_by_kind={kind: 1} if failed else {},
        reward_sum=rollout.reward or 0.0,
        rewarded=int(rollout.reward is not None),
        model_calls=kinds.count("model"),
        tool_calls=kinds.count("tool"),
        prompt_tokens=rollout.usage.prompt_tokens,
        generated_tokens=rollout.usage.generated_tokens,
        cost_usd=rollout.usage.cost_usd,
    )


__all__ = ["FinishedRollout", "RolloutGroup", "read_result", "totals_of"]
