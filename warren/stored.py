"""Rows that a sink wrote, read back: what rewards see of them, and the same row scored anew.

What a row does not have can't be judged again: a live session, and the dataset's own prompt where
the row shows the one with the system prompt and examples.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from broker import codec
from broker.errors import UsageError
from broker.messages import Task, Usage, Verdict
from sinks.ids import Ids
from sinks.part_reading import committed_lines
from sinks.rows import RowDict
from sinks.totals import BadRow, summary_of
from sinks.warren_part import reward_components, verifier_part
from workers.rewards import PackedRollout

_TOKEN_FIELDS: Final = {"prompt_token_ids", "generation_token_ids", "generation_log_probs"}
#: Keys of a row that were not the dataset's.
_OURS: Final = frozenset({"response", "reward", "reward_components", "warren"})


def rows_in(path: Path) -> Iterator[RowDict]:
    """The rows of a JSONL or Parquet file, or of a sink's directory. Raises UsageError."""
    for where, row in _read(path):
        try:
            summary_of(row)
        except BadRow as e:
            raise UsageError(f"{where}: not a row of ours: {e}") from e
        yield row


def _read(path: Path) -> Iterator[tuple[str, RowDict]]:
    if path.is_dir():
        yield from _in_parts(path)
    elif path.suffix == ".parquet":
        from sinks.parquet import iter_rows

        for number, row in enumerate(iter_rows(path), 1):
            yield f"{path}: row {number}", row
    elif path.exists():
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.endswith(b"\n"):  # else it was never whole
                    yield f"{path}:{number}", _decoded(f"{path}:{number}", line)
    else:
        raise UsageError(f"{path}: no such file or directory")


def _in_parts(path: Path) -> Iterator[tuple[str, RowDict]]:
    """Good rows first: a failed one that was run again has been superseded."""
    good = Ids()
    for part, number, data in committed_lines(path):
        where = f"{part.path}:{number}"
        row = _decoded(where, data)
        own = row.get("warren", {})
        if good.add(own.get("task_index", -1), own.get("repeat_index", -1)):
            yield where, row


def _decoded(where: str, data: bytes) -> RowDict:
    try:
        row: RowDict = msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeError) as e:
        raise UsageError(f"{where}: not a row of ours: {e}") from e
    return row


def can_be_scored(row: RowDict) -> bool:
    """Whether its rollout ran to an end; of failed ones only those whose verifier failed."""
    own = row["warren"]
    return bool(own["status"] != "failed" or own["error"]["kind"] == "verifier")


def rollout_in(row: RowDict) -> PackedRollout:
    """What reward functions see."""
    own, usage = row["warren"], row["warren"]["usage"]
    prompt = row["responses_create_params"].get("input")
    items = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt or []
    return PackedRollout(
        rollout_id=own["rollout_id"],
        row=msgspec.json.encode({k: v for k, v in row.items() if k not in _OURS}),
        prompt=codec.pack(items),
        output=codec.pack([_without_tokens(item) for item in row["response"]["output"]]),
        status=_status(row),
        error=None,
        state=msgspec.json.encode(own["state"]) if "state" in own else b"",
        steps=usage["model_calls"],
        usage=Usage(**{name: usage[name] for name in Usage.__struct_fields__}),
    )


def task_in(row: RowDict) -> Task:
    """As much of its task as a judge's calls need."""
    own = row["warren"]
    return Task(
        run=own["run_id"],
        generation=own["generation"],
        task_index=own["task_index"],
        repeat=own["repeat_index"],
        environment=own["environment"],
        model=own["model"],
        row=b"{}",
    )


def scored_again(row: RowDict, verdict: Verdict) -> RowDict:
    """The row with this verdict in the place of the one that it had."""
    status, error = _status(row), verdict.error
    parts = reward_components(verdict)
    kept = row["warren"]["error"] if status == row["warren"]["status"] else None
    own = {
        **row["warren"],
        "status": "failed" if error else status,
        "error": msgspec.structs.asdict(error) if error else kept,
        "reward_components": parts,
        "timing": {**row["warren"]["timing"], "verifier_s": verdict.seconds},
        "verifier": verifier_part(verdict),
    }
    made = {**row, "reward": verdict.reward, "reward_components": parts, "warren": own}
    if not parts:
        del made["reward_components"]
    return made


def _status(row: RowDict) -> Any:
    """As the agent left it, whatever its verifier did."""
    if row["warren"]["status"] != "failed":
        return row["warren"]["status"]
    return "truncated" if row["response"]["status"] == "incomplete" else "completed"


def _without_tokens(item: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in item.items() if k not in _TOKEN_FIELDS}


__all__ = ["can_be_scored", "rollout_in", "rows_in", "scored_again", "task_in"]
