"""Checking a dataset in one streaming pass, before anything of it is published.

A row is a NeMo Gym task: a JSON object with `responses_create_params` of the Responses API's
shape (its own keys only) and any further keys, which are nobody's business here. For convenience a
row without it may give its prompt as a top-level `prompt` (text) or `messages` (list of
`{role, content}`) instead; every other key is left alone and nothing is ever guessed. Identical
lines are separate tasks.
"""

import difflib
import hashlib
import json
import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from broker import codec
from broker.errors import WireError
from producers import bitmap
from producers.datasets import MAX_ROW_BYTES, TaskLine, read_lines
from producers.pairs import MAX_INDEX, Pairs

#: Problems that are kept with their text; the rest is counted.
SHOWN_PROBLEMS: Final = 20
_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _finite(text: str) -> float:
    if math.isfinite(number := float(text)):
        return number
    raise ValueError(f"{text} is too large")


#: Built once: a decoder for each of ten million rows would cost more than the decoding.
_STRICT: Final = json.JSONDecoder(parse_constant=_no_constant, parse_float=_finite)


def _item(value: object) -> object:
    if not isinstance(value, dict) or not ("type" in value or "role" in value):
        raise ValueError("an item is an object with a `type` or a `role`")
    if value.get("type", "message") != "message":
        return value
    if not isinstance(value.get("role"), str) or not isinstance(value.get("content"), str | list):
        raise ValueError("a message has a `role` and a `content` (text or a list of parts)")
    return value


def _tool(value: object) -> object:
    if not isinstance(value, dict) or not isinstance(value.get("type"), str):
        raise ValueError("a tool is an object with a `type`")
    if value["type"] == "function" and not isinstance(value.get("name"), str):
        raise ValueError("a function tool has a `name` at its top level")
    return value


_Item = Annotated[dict[str, Any], BeforeValidator(_item)]
_Tool = Annotated[dict[str, Any], BeforeValidator(_tool)]


class ResponsesCreateParams(BaseModel):
    """What NeMo Gym accepts under `responses_create_params`, key by key; null counts as absent."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    input: str | list[_Item]
    """May be empty: some environments' agents begin the conversation."""
    background: bool | None = None
    include: list[str] | None = None
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(gt=0)] | None = None
    max_tool_calls: Annotated[int, Field(ge=0)] | None = None
    metadata: dict[str, str] | None = None
    model: str | None = None
    parallel_tool_calls: bool | None = None
    previous_response_id: str | None = None
    prompt: dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None
    service_tier: str | None = None
    store: bool | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    text: dict[str, Any] | None = None
    tool_choice: str | dict[str, Any] | None = None
    tools: list[_Tool] | None = None
    top_logprobs: Annotated[int, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    truncation: str | None = None
    user: str | None = None
    stream: Literal[False] | None = None


class BadRow(ValueError):
    """Why a row is no task, in words for its author."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with one line."""

    line_number: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    """What a dataset holds. `bad` rows are left out of the run, or stop it before it begins."""

    path: Path
    sha256: str
    """Of the whole file, uncompressed, `limit` or not."""
    tasks: int
    """Rows that are fine, at most `limit`."""
    end: int
    """One more than the index of the last row that was checked."""
    problems: tuple[Problem, ...]
    """The first SHOWN_PROBLEMS of them."""
    bad_rows: int
    bad: bytes
    """Bitmap over task indices (producers/bitmap.py)."""

    def describe(self) -> str:
        """`file:line: reason` for the first problems, then how many rows are bad in all."""
        lines = [f"{self.path}:{p.line_number}: {p.reason}" for p in self.problems]
        rows = "1 row is" if self.bad_rows == 1 else f"{self.bad_rows} rows are"
        return "\n".join([*lines, f"{self.path}: {rows} bad"])


def check(
    path: Path,
    *,
    limit: int | None = None,
    repeats: int = 1,
    tools: Collection[str] | None = None,
) -> CheckReport:
    """Read the whole dataset once and check the rows that a run would use. Blocks: use a thread.

    `limit` counts good rows. `tools` are the environment's; rows that offer the model others are
    bad (None: not checked). Memory does not grow with the dataset but for one bit per row.

    Raises: BadDataset where the file cannot be read.
    """
    with Pairs(repeats) as pairs:
        checking = _Checking(pairs, repeats, tools)
        digest = hashlib.sha256()
        for line in read_lines(path, digest.update):
            if limit is None or checking.tasks < limit:
                checking.add(line)
        checking.add_clashes()
    return CheckReport(
        path=path,
        sha256=digest.hexdigest(),
        tasks=checking.tasks,
        end=checking.end,
        problems=tuple(sorted(checking.problems, key=lambda p: p.line_number)),
        bad_rows=bitmap.count(checking.bad),
        bad=bytes(checking.bad),
    )


def good_lines(report: CheckReport) -> Iterator[TaskLine]:
    """The checked dataset's tasks, as agents read them (`task_row`), without its bad rows."""
    if not report.tasks:
        return
    for line in read_lines(report.path):
        if line.index >= report.end:
            return
        if not bitmap.has(report.bad, line.index):
            yield TaskLine(line.index, task_row(line.raw))


def task_row(raw: bytes) -> bytes:
    """The row as it travels: byte for byte, unless its prompt stands outside.

    A `prompt` or `messages` is then also put where NeMo Gym has it. Raises BadRow.
    """
    row = parse(raw)
    if row.get("responses_create_params") is not None:
        return raw
    expanded = {**row, "responses_create_params": {"input": _shorthand(row)}}
    return json.dumps(expanded, ensure_ascii=False, separators=(",", ":")).encode()


def parse(raw: bytes) -> dict[str, Any]:
    """Read a row strictly: UTF-8, JSON without NaN, an object. Raises BadRow."""
    try:
        row = _STRICT.decode(raw.decode())
    except UnicodeDecodeError as e:
        raise BadRow(f"not UTF-8 at byte {e.start}") from e
    except json.JSONDecodeError as e:
        raise BadRow(f"not JSON: {e.msg} at column {e.colno}") from e
    except RecursionError as e:
        raise BadRow("not JSON: nested too deep") from e
    except ValueError as e:
        raise BadRow(f"not JSON: {e}") from e
    if not isinstance(row, dict):
        raise BadRow(f"a row is a JSON object, this is {_json_type(row)}")
    if _SURROGATE.search(raw):
        _encodable(row)
    return row


def check_row(row: Mapping[str, Any], tools: Collection[str] | None = None) -> None:
    """Whether a row can become a task. Raises BadRow with every reason."""
    params = row.get("responses_create_params")
    if params is None:
        params = {"input": _shorthand(row)}
        if not params["input"]:
            raise BadRow("its `prompt` or `messages` is empty")
    elif not isinstance(params, dict):
        raise BadRow(f"responses_create_params is {_json_type(params)}, not an object")
    elif params.get("input") is None:
        raise BadRow("responses_create_params has no `input`: a text or a list of items")
    try:
        checked = ResponsesCreateParams.model_validate(params, strict=True)
        codec.unpack(codec.pack(params))  # as agents and models will get it
    except ValidationError as e:
        raise BadRow(_in_words(e)) from e
    except (WireError, ValueError) as e:
        raise BadRow(f"cannot be sent: {e}") from e
    if tools is not None:
        _check_tools(checked.tools or [], tools)


class _Checking:
    """The state of one pass: counts, bits and the first problems."""

    def __init__(self, pairs: Pairs, repeats: int, tools: Collection[str] | None) -> None:
        self.tasks = 0
        self.end = 0
        self.bad = bytearray()
        self.problems: list[Problem] = []
        self._pairs = pairs
        self._repeats = repeats
        self._tools = tools

    def add(self, line: TaskLine) -> None:
        self.end = line.index + 1
        try:
            self._check(line)
        except BadRow as e:
            self._blame(line.index, str(e))
        else:
            self.tasks += 1

    def add_clashes(self) -> None:
        for later, earlier, task in self._pairs.clashes():
            if not bitmap.has(self.bad, later):
                self.tasks -= 1
                self._blame(
                    later, f"same _ng_task_index {task} and _ng_rollout_index as line {earlier + 1}"
                )

    def _check(self, line: TaskLine) -> None:
        if line.oversized:
            raise BadRow(f"longer than {MAX_ROW_BYTES} bytes")
        row = parse(line.raw)
        check_row(row, self._tools)
        task, rollout = _given(row, "_ng_task_index"), _given(row, "_ng_rollout_index")
        if rollout is not None and self._repeats > 1:
            raise BadRow(
                "gives its own _ng_rollout_index, which each of its "
                f"{self._repeats} repeats would have: use 1 repeat, or remove it"
            )
        self._pairs.add(line.index, task, rollout)

    def _blame(self, index: int, reason: str) -> None:
        bitmap.add(self.bad, index)
        if len(self.problems) < SHOWN_PROBLEMS:
            self.problems.append(Problem(index + 1, reason))


def _shorthand(row: Mapping[str, Any]) -> str | list[Any]:
    prompt, messages = row.get("prompt"), row.get("messages")
    if prompt is not None and messages is not None:
        raise BadRow("has both `prompt` and `messages`, and no `responses_create_params`")
    if prompt is not None:
        if not isinstance(prompt, str):
            raise BadRow(f"`prompt` is {_json_type(prompt)}, not text (a list goes in `messages`)")
        return prompt
    if messages is not None:
        return _plain_messages(messages)
    raise BadRow("has no `responses_create_params` (nor `prompt` text, nor `messages`)")


def _plain_messages(messages: object) -> list[Any]:
    if not isinstance(messages, list):
        raise BadRow(f"`messages` is {_json_type(messages)}, not a list")
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            raise BadRow(
                f"messages.{i} is not an object of `role` and `content` alone; "
                "tool calls go in `responses_create_params.input`"
            )
    return messages


def _given(row: Mapping[str, Any], key: str) -> int | None:
    value = row.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < MAX_INDEX:
        raise BadRow(f"{key} is not a non-negative integer")
    return value


def _check_tools(offered: Collection[Mapping[str, Any]], known: Collection[str]) -> None:
    for tool in offered:
        name = tool.get("name")
        if tool["type"] == "function" and name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            hint = f", did you mean {close[0]!r}?" if close else ""
            listed = ", ".join(sorted(known)) or "none"
            raise BadRow(f"offers the unknown tool {name!r}{hint} (known: {listed})")


def _in_words(error: ValidationError) -> str:
    """The first few reasons, without pydantic's names for branches of a union."""
    reasons: dict[str, None] = {}
    for e in error.errors(include_url=False, include_input=False):
        path = [str(part) for part in e["loc"] if not _is_branch(part)]
        unknown = e["type"] == "extra_forbidden"
        reason = "unknown key" if unknown else e["msg"].removeprefix("Value error, ")
        reasons[f"responses_create_params.{'.'.join(path)}: {reason}"] = None
    return "; ".join(list(reasons)[:3])


def _is_branch(part: str | int) -> bool:
    return isinstance(part, str) and (part in {"str", "float"} or "[" in part)


def _encodable(row: object) -> None:
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as e:
        raise BadRow("has half of a surrogate pair, which is no Unicode text") from e


def _json_type(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


__all__ = [
    "SHOWN_PROBLEMS",
    "BadRow",
    "CheckReport",
    "Problem",
    "ResponsesCreateParams",
    "check",
    "check_row",
    "good_lines",
    "parse",
    "task_row",
]
