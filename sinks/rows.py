"""A finished rollout as its output row: a superset of NeMo Gym's, one JSON object.

Pure functions. Every key of the task's own row is kept; `responses_create_params`, `response`,
`reward`, `_ng_*`, `agent_ref` are what Gym's tools and NeMo-RL read; `warren` has the rest
(warren_part.py). A row is whole or it is not made: `NotARow` says why, and `failed_row` makes
the row that says so in its place.

`response.output` is the main branch after its prompt. Each model call's tokens stand on its last
output item, all three arrays or none. A rollout that failed has an empty response; what its calls
said stands in `warren.branches`, as do the calls of other branches. NaN never reaches JSON.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from broker import codec
from broker.errors import WarrenError, WireError
from broker.messages import (
    Failure,
    ModelResult,
    Result,
    Task,
    Trajectory,
    Verdict,
)
from broker.trajectory import Entry, Item, Node, chain, forest, main_transcript
from sinks import warren_part
from sinks.tokens import fields_of, listed
from sinks.totals import RowSummary, summary_of

log = logging.getLogger(__name__)

RowDict = dict[str, Any]

#: Gym's request object with its defaults, in Gym's order. It forbids all other keys.
CREATE_PARAMS: Final[Mapping[str, Any]] = {
    "background": None,
    "include": None,
    "input": [],
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": None,
    "model": None,
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "prompt": None,
    "reasoning": None,
    "service_tier": None,
    "store": None,
    "temperature": None,
    "text": None,
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": None,
    "top_p": None,
    "truncation": None,
    "user": None,
    "stream": None,
}

_ENCODER: Final = msgspec.json.Encoder(enc_hook=listed)
_TRUNCATED_BY: Final = ("length", "context_overflow", "content_filter")


class NotARow(WarrenError):
    """This result can't be written as a row; the text says what is wrong with it."""


class Row(msgspec.Struct, frozen=True):
    """A row ready to be written."""

    data: bytes
    """One JSON object without a newline."""
    summary: RowSummary


def row_of(result: Result) -> RowDict:
    """The output row of a finished rollout. Raises NotARow."""
    try:
        trajectory = codec.read(Trajectory, result.trajectory)
        task = codec.read(Task, trajectory.task)
        nodes = forest(trajectory.calls)
        return _row(result, trajectory, task, nodes, task_row(task))
    except WireError as e:
        raise NotARow(str(e)) from e


def failed_row(result: Result, reason: str) -> RowDict:
    """The row of a result that `row_of` refuses: failed, kind infra, with what can be read."""
    try:
        unread = codec.read(Trajectory, result.trajectory)
        task = codec.read(Task, unread.task)
    except WireError:
        unread, task = (
            Trajectory(task=b"", rollout="", epoch="", attempt=1, status="failed"),
            _unknown_task(result),
        )
    try:
        source = task_row(task)
    except NotARow:
        source = {}
    trajectory = msgspec.structs.replace(
        unread,
        status="failed",
        error=Failure(kind="infra", message=reason, where="sink"),
        calls=(),
        main=None,
        tail_items=(),
        tools=b"",
        prompt_items=0,
    )
    unscored = msgspec.structs.replace(result, verdict=Verdict(reward=None))
    return _row(unscored, trajectory, task, {}, source)


def encode(row: RowDict) -> Row:
    """The row as bytes. Raises NotARow for what JSON has no form for."""
    try:
        data = _ENCODER.encode(row)
    except (TypeError, ValueError, OverflowError, RecursionError) as e:
        raise NotARow(f"not JSON: {e}") from e
    return Row(data, summary_of(row))


def row_for(result: Result) -> Row:
    """The row that is written for this result, whatever is in it."""
    try:
        return encode(row_of(result))
    except NotARow as e:
        reason = str(e)
    # a second broad `except` beside settle()'s: what one rollout holds must not stop a sink
    except Exception as e:
        log.exception("result made no row", extra={"rollout": result.rollout_id})
        reason = f"{type(e).__name__}: {e}"
    return encode(failed_row(result, reason))


def task_row(task: Task) -> RowDict:
    """The dataset's line. Raises NotARow if it is no JSON object."""
    try:
        row = msgspec.json.decode(task.row)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as e:
        raise NotARow(f"the task's row is not JSON: {e}") from e
    if not isinstance(row, dict):
        raise NotARow("the task's row is not a JSON object")
    return row


def _row(
    result: Result,
    trajectory: Trajectory,
    task: Task,
    nodes: Mapping[str, Node],
    source: RowDict,
) -> RowDict:
    failed = trajectory.status == "failed"
    entries = main_transcript(trajectory, nodes)
    main = () if failed or trajectory.main is None else chain(nodes, trajectory.main)
    params = _create_params(trajectory, task, source, entries)
    prompt = trajectory.prompt_items
    output = [] if failed else _output(entries[prompt:], {n.record.path: n for n in main})
    reward = _finite(result.verdict.reward)
    parts = warren_part.reward_components(result.verdict)
    group = _index(source.get("_ng_task_index"), result.task_index)
    own = warren_part.warren_of(result, trajectory, task, nodes, main, entries, group)
    row = {
        **source,
        "responses_create_params": params,
        "response": _response(result, trajectory, task, params, output, main, own["usage"]),
        "reward": None if own["status"] == "failed" else reward,
        "_ng_task_index": group,
        "_ng_rollout_index": _index(source.get("_ng_rollout_index"), result.repeat),
        "agent_ref": _agent_ref(source, task),
        "reward_components": parts,
        "warren": own,
    }
    if not parts:
        del row["reward_components"]
    return row


def _index(given: object, ours: int) -> int:
    return given if isinstance(given, int) and not isinstance(given, bool) else ours


def _agent_ref(source: RowDict, task: Task) -> object:
    given = source.get("agent_ref")
    if isinstance(given, dict):
        return given
    return {"type": "responses_api_agents", "name": task.environment}


def _create_params(
    trajectory: Trajectory, task: Task, source: RowDict, entries: Sequence[Entry]
) -> RowDict:
    given = source.get("responses_create_params")
    params = {**CREATE_PARAMS, **(given if isinstance(given, dict) else {})}
    sampled = msgspec.structs.asdict(task.sampling)
    for name in ("temperature", "top_p", "max_output_tokens"):
        if sampled[name] is not None:
            params[name] = sampled[name]
    if trajectory.prompt_items:
        params["input"] = [entry.item for entry in entries[: trajectory.prompt_items]]
    if trajectory.tools:
        params["tools"] = codec.unpack(trajectory.tools)
    return params


def _output(entries: Sequence[Entry], main: Mapping[str, Node]) -> list[Item]:
    """The items, each call's tokens on the last one that it wrote."""
    last = {entry.call: at for at, entry in enumerate(entries) if entry.call is not None}
    output = [entry.item for entry in entries]
    for path, at in last.items():
        fields = fields_of(main[path])
        if fields is not None:
            output[at] = {**output[at], **fields}
    return output


def _response(
    result: Result,
    trajectory: Trajectory,
    task: Task,
    params: RowDict,
    output: list[Item],
    main: Sequence[Node],
    usage: Mapping[str, Any],
) -> RowDict:
    last = main[-1].result if main and isinstance(main[-1].result, ModelResult) else ModelResult()
    reason = _incomplete(trajectory, last)
    failed = trajectory.status == "failed"
    return {
        "id": last.response_id or "resp_" + result.rollout_id.replace("/", "_"),
        "created_at": trajectory.finished_at,
        "model": last.model or task.model,
        "object": "response",
        "status": "failed" if failed else "completed" if reason is None else "incomplete",
        "error": None,
        "incomplete_details": None if reason is None else {"reason": reason},
        "instructions": params["instructions"],
        "metadata": params["metadata"],
        "output": output,
        "parallel_tool_calls": params["parallel_tool_calls"],
        "temperature": params["temperature"],
        "tool_choice": params["tool_choice"],
        "tools": params["tools"],
        "top_p": params["top_p"],
        "usage": {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": {"cached_tokens": usage["cached_tokens"]},
            "output_tokens": usage["generated_tokens"],
            "output_tokens_details": {"reasoning_tokens": usage["reasoning_tokens"]},
            "total_tokens": usage["prompt_tokens"] + usage["generated_tokens"],
        },
    }


def _incomplete(trajectory: Trajectory, last: ModelResult) -> str | None:
    """OpenAI's reason; its schema has only these two."""
    if trajectory.status == "failed":
        return None
    if trajectory.status != "truncated" and last.finish_reason not in _TRUNCATED_BY:
        return None
    return "content_filter" if last.finish_reason == "content_filter" else "max_output_tokens"


def _finite(reward: float | None) -> float | None:
    return reward if reward is not None and math.isfinite(reward) else None


def _unknown_task(result: Result) -> Task:
    return Task(
        run=result.run,
        generation=result.generation,
        task_index=result.task_index,
        repeat=result.repeat,
        environment="",
        model="",
        row=b"{}",
    )


__all__ = [
    "CREATE_PARAMS",
    "NotARow",
    "Row",
    "RowDict",
    "encode",
    "failed_row",
    "row_for",
    "row_of",
    "task_row",
]
