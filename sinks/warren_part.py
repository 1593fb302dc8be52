"""The `warren` key of a row: what the rollout was, what became of it, and all of its calls.

    schema, run_id, generation, rollout_id, group_id, task_index, repeat_index, environment, model,
    status, error, attempt, policy_version, reward_components, usage, timing, trajectory_sha256,
    calls     one entry per model and tool call: path, parent, usage, versions, seconds, error ...
    branches  model calls that are not in `response`: their new input and output items, with tokens
    state     the final state, where the environment has one
    verifier  what judged it: seconds, usage, its own calls and what judges were asked and said

Token counts are the engine's; `usage` counts the rollout's own calls, `verifier.usage` the judges'.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from broker import codec
from broker.messages import (
    Failure,
    ModelResult,
    Result,
    Task,
    ToolResult,
    Trajectory,
    Verdict,
    VersionSpan,
)
from broker.trajectory import Entry, Item, Node, forest, read_item
from sinks.tokens import fields_of, output_with_tokens

#: Raised when a reader of old rows would misread new ones.
ROW_SCHEMA: Final = 1


def warren_of(
    result: Result,
    trajectory: Trajectory,
    task: Task,
    nodes: Mapping[str, Node],
    main: Sequence[Node],
    entries: Sequence[Entry],
    group: int,
) -> dict[str, Any]:
    """Warren's own part of the row.

    `main`: the calls whose items stand in `response`; `entries`: the main transcript; `group`:
    the number that the rollouts of one task share.
    """
    failure = error_of(trajectory, result.verdict)
    error = failure or trajectory.error  # a truncated one says what cut it off
    shown = {node.record.path for node in main}
    branches = _branches(n for p, n in nodes.items() if p not in shown)
    read = _tool_texts([*(e.item for e in entries), *(i for b in branches for i in b["input"])])
    own = {
        "schema": ROW_SCHEMA,
        "run_id": result.run,
        "generation": result.generation,
        "rollout_id": result.rollout_id,
        "group_id": f"{result.run}/{group}",
        "task_index": result.task_index,
        "repeat_index": result.repeat,
        "environment": task.environment,
        "model": task.model,
        "status": "failed" if failure is not None else trajectory.status,
        "error": None if error is None else msgspec.structs.asdict(error),
        "attempt": trajectory.attempt,
        "policy_version": _version(versions_of(nodes.values())),
        "reward_components": reward_components(result.verdict),
        "usage": usage_of(nodes.values()),
        "timing": _timing(trajectory, task, result.verdict, nodes.values()),
        "trajectory_sha256": _sha256(result, trajectory).hex(),
        "calls": [call_entry(node, read) for node in nodes.values()],
        "branches": branches,
        "verifier": verifier_part(result.verdict),
    }
    return own | _state(trajectory.state)


def _sha256(result: Result, trajectory: Trajectory) -> bytes:
    """Of what was said and done; of the whole message where its agent took none."""
    return trajectory.digest or hashlib.sha256(result.trajectory).digest()


def _state(packed: bytes) -> dict[str, Any]:
    """The final state, for whoever scores the row again: its author's type as JSON."""
    try:
        return {"state": msgspec.json.decode(packed)} if packed else {}
    except (msgspec.MsgspecError, UnicodeError):
        return {}


def error_of(trajectory: Trajectory, verdict: Verdict) -> Failure | None:
    """Why the row is a failed one, or None: the rollout's failure first, then the verifier's."""
    if trajectory.status == "failed":
        return trajectory.error or Failure(kind="infra", message="failed without a reason")
    if verdict.error is not None:
        return verdict.error
    if verdict.reward is not None and not math.isfinite(verdict.reward):
        return Failure(kind="verifier", message=f"the reward is {verdict.reward}")
    return None


def reward_components(verdict: Verdict) -> dict[str, float]:
    """Finite parts of the reward by name; none where any is not finite, as the sum is not."""
    parts = dict(verdict.components)
    return parts if all(map(math.isfinite, parts.values())) else {}


def usage_of(nodes: Iterable[Node]) -> dict[str, int | float]:
    """Usage summed over all model calls, and how many calls there were."""
    prompt = generated = cached = reasoning = model_calls = tool_calls = 0
    cost_usd: int | float = 0
    for node in nodes:
        if not isinstance(node.result, ModelResult):
            tool_calls += node.record.kind == "tool"
            continue
        used = node.result.usage
        model_calls += 1
        prompt += used.prompt_tokens
        generated += used.generated_tokens
        cached += used.cached_tokens
        reasoning += used.reasoning_tokens
        cost_usd += used.cost_usd
    return {
        "prompt_tokens": prompt,
        "generated_tokens": generated,
        "cached_tokens": cached,
        "reasoning_tokens": reasoning,
        "cost_usd": cost_usd,
        "model_calls": model_calls,
        "tool_calls": tool_calls,
    }


def versions_of(nodes: Iterable[Node]) -> VersionSpan | None:
    """The oldest and newest policy version that any call was sampled from."""
    spans = [
        node.result.versions
        for node in nodes
        if isinstance(node.result, ModelResult) and node.result.versions is not None
    ]
    if not spans:
        return None
    return VersionSpan(min=min(s.min for s in spans), max=max(s.max for s in spans))


def call_entry(node: Node, read: frozenset[str]) -> dict[str, Any]:
    """A call without its items. `read`: tool outputs that stand in a conversation already."""
    record, result = node.record, node.result
    entry: dict[str, Any] = {
        "path": record.path,
        "kind": record.kind,
        "name": record.name,
        "started_at": record.started_at,
        "finished_at": record.finished_at,
        "seconds": result.seconds,
        "error": None if result.error is None else msgspec.structs.asdict(result.error),
    }
    return entry | (
        _model(node, result) if isinstance(result, ModelResult) else _tool(node, result, read)
    )


def _model(node: Node, result: ModelResult) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "parent": node.record.parent,
        "shared_items": node.record.shared_items,
        "input_items": len(node.record.new_items),
        "output_items": len(node.output),
        "model": result.model,
        "response_id": result.response_id,
        "finish_reason": result.finish_reason,
        "tries": result.tries,
        "usage": msgspec.structs.asdict(result.usage),
        "policy_version": _version(result.versions),
    }
    if node.record.request:
        entry["options"] = codec.unpack(node.record.request)
    if result.tokens is not None and not node.output:
        entry["tokens"] = fields_of(node)  # no output item to carry them
    return entry


def _tool(node: Node, result: ToolResult, read: frozenset[str]) -> dict[str, Any]:
    entry: dict[str, Any] = {"truncated": result.truncated, "in_doubt": result.in_doubt}
    if result.output not in read:  # the agent's own use of a tool: the policy did not see it
        entry["arguments"] = node.record.request.decode(errors="replace")
        entry["output"] = result.output
    return entry


def _tool_texts(items: Iterable[Item]) -> frozenset[str]:
    outputs = (i.get("output") for i in items if i.get("type") == "function_call_output")
    return frozenset(text for text in outputs if isinstance(text, str))


def _branches(nodes: Iterable[Node]) -> list[dict[str, Any]]:
    return [
        {
            "path": node.record.path,
            "parent": node.record.parent,
            "shared_items": node.record.shared_items,
            "input": [read_item(item) for item in node.record.new_items],
            "output": output_with_tokens(node),
        }
        for node in nodes
        if isinstance(node.result, ModelResult)
    ]


def verifier_part(verdict: Verdict) -> dict[str, Any]:
    """What judged the rollout."""
    nodes = forest(verdict.calls)
    return {
        "seconds": verdict.seconds,
        "usage": usage_of(nodes.values()),
        "calls": [call_entry(node, frozenset()) for node in nodes.values()],
        "branches": _branches(nodes.values()),
    }


def _version(span: VersionSpan | None) -> dict[str, int] | None:
    return None if span is None else {"min": span.min, "max": span.max}


def _timing(
    trajectory: Trajectory, task: Task, verdict: Verdict, nodes: Iterable[Node]
) -> dict[str, float]:
    """Unix seconds of the rollout's course, and seconds spent in its calls."""
    spent = {"model": 0.0, "tool": 0.0, "setup": 0.0}
    for node in nodes:
        spent[node.record.kind] += node.result.seconds
    return {
        "enqueued_at": task.enqueued_at,
        "started_at": trajectory.started_at,
        "finished_at": trajectory.finished_at,
        "model_s": spent["model"],
        "tool_s": spent["tool"] + spent["setup"],
        "verifier_s": verdict.seconds,
    }
