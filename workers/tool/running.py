"""Runs one tool (or setup) of an environment: whatever happens in it becomes a result.

The same code runs in the worker's process and in the child of an isolated call.
"""

import difflib
import time
from collections.abc import Mapping
from typing import Any, Final

import msgspec
import pydantic_core

from broker.messages import Failure, ToolResult
from workers.limited import Overdue, described, last_lines, within
from workers.spec import BadArguments, EnvironmentSpec, StateSpec, ToolRun, ToolSpec

IN_DOUBT: Final = "may or may not have happened: check before you call it again."
_CUT: Final = "\n[output cut here: it is longer than {} bytes]"


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be run; plain data, so that it can go to another process."""

    tool: str
    """Empty for the environment's setup."""
    arguments: str
    """JSON text as the model wrote it: untrusted."""
    idempotency_key: str
    timeout_s: float
    row: bytes = b""
    state: bytes = b""


class Performed(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a job."""

    result: ToolResult
    state: bytes | None = None
    """The new state, where it changed."""
    overdue: bool = False
    """It did not end in time."""
    lost: bool = False
    """Its coroutine still runs, though nobody waits for it."""


async def perform(spec: EnvironmentSpec, job: Job, session: Any = None) -> Performed:
    """Run the job; `session` is the rollout's live object. Raises nothing but CancelledError."""
    started = time.monotonic()
    tool = spec.tools.get(job.tool)
    try:
        if not job.tool:
            done = await _set_up(spec, job)
        elif tool is None:
            done = Performed(result=ToolResult(output=unknown_tool(spec, job.tool)))
        else:
            done = await _call(spec, tool, job, session)
    except Overdue as e:
        done = overdue(tool, job, lost=not e.ended)
    except Exception as e:  # the border to user code
        done = Performed(result=raised(e, tool))
    seconds = round(time.monotonic() - started, 6)
    return msgspec.structs.replace(
        done, result=msgspec.structs.replace(done.result, seconds=seconds)
    )


def unknown_tool(spec: EnvironmentSpec, name: str) -> str:
    """For the model, who made it up."""
    known = list(spec.tools)
    close = difflib.get_close_matches(name, known, n=1)
    meant = f" Did you mean {close[0]!r}?" if close else ""
    return f"Error: there is no tool {name!r}.{meant} Known tools: {', '.join(known) or 'none'}."


def overdue(tool: ToolSpec | None, job: Job, *, lost: bool = False) -> Performed:
    """The result of a call that did not end in time."""
    name = job.tool or "setup"
    message = f"{name} did not finish within {job.timeout_s:g} s"
    return Performed(result=broken_off(tool, message, where=name), overdue=True, lost=lost)


def broken_off(tool: ToolSpec | None, message: str, *, where: str) -> ToolResult:
    """The result of a tool that was stopped while it ran; one that acts once may have acted."""
    failure = Failure(kind="tool", message=message, where=where)
    if tool is None or tool.effect != "at_most_once":
        return ToolResult(output=f"Error: {message}", error=failure)
    output = f"Error: {message}. What it does {IN_DOUBT}"
    return ToolResult(output=output, error=failure, in_doubt=True)


async def _set_up(spec: EnvironmentSpec, job: Job) -> Performed:
    if spec.state is None:
        return Performed(result=ToolResult())
    made = await within(job.timeout_s, spec.state.setup(row_of(job.row)))
    return Performed(result=ToolResult(), state=spec.state.pack(made))


async def _call(spec: EnvironmentSpec, tool: ToolSpec, job: Job, session: Any) -> Performed:
    try:
        run = ToolRun(
            arguments=parse_arguments(job.arguments),
            idempotency_key=job.idempotency_key,
            row=row_of(job.row) if tool.needs_task else {},
            state=_unpacked(spec.state, job.state) if tool.needs_state else None,
            session=session,
        )
        value = await within(job.timeout_s, tool.run(run))
    except BadArguments as e:
        return Performed(result=_cut(ToolResult(output=f"Error: {e}"), tool.max_output_bytes))
    result = _cut(ToolResult(output=_text(value)), tool.max_output_bytes)
    return Performed(result=result, state=_changed(spec.state, tool, job, run))


def parse_arguments(text: str) -> Mapping[str, Any]:
    """The model's arguments as an object. Raises BadArguments."""
    try:
        value = pydantic_core.from_json(text or "{}", allow_inf_nan=False)
    except ValueError as e:
        raise BadArguments(f"the arguments are not JSON: {e}") from e
    if not isinstance(value, dict):
        raise BadArguments(f"the arguments must be a JSON object, not {type(value).__name__}")
    return value


def row_of(row: bytes) -> Mapping[str, Any]:
    """The dataset's row; empty where the call carries none."""
    value = pydantic_core.from_json(row) if row else {}
    return value if isinstance(value, dict) else {}


def _unpacked(state: StateSpec | None, packed: bytes) -> object:
    if state is None:
        return None
    if not packed:  # never on a blank state
        raise RuntimeError("the rollout has no state: its setup has not run")
    return state.unpack(packed)


def _changed(state: StateSpec | None, tool: ToolSpec, job: Job, run: ToolRun) -> bytes | None:
    if state is None or not tool.needs_state:
        return None
    packed = state.pack(run.state)
    if packed == job.state:
        return None
    if tool.effect == "pure":  # it ran beside others: its changes would be lost, or undo theirs
        raise RuntimeError("it is declared pure, but it changed the state")
    return packed


def _text(value: object) -> str:
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    try:
        return pydantic_core.to_json(value, inf_nan_mode="constants").decode()
    except (ValueError, TypeError, RecursionError) as e:
        raise TypeError(f"it returned {type(value).__name__}, which has no JSON form: {e}") from e


def raised(error: Exception, tool: ToolSpec | None) -> ToolResult:
    """The result of a function that raised."""
    message = described(error)
    limit = tool.max_output_bytes if tool else 4096
    where = last_lines(error).encode(errors="replace").decode()
    failure = Failure(kind="tool", message=message[:limit], where=where[-4096:])
    return _cut(ToolResult(output=f"Error: {message}", error=failure), limit)


def _cut(result: ToolResult, limit: int) -> ToolResult:
    """The output in at most `limit` bytes, with a word about it to the model."""
    encoded = result.output.encode()
    if len(encoded) <= limit:
        return result
    note = _CUT.format(limit)
    kept = encoded[: max(0, limit - len(note))].decode(errors="ignore")
    return msgspec.structs.replace(result, output=(kept + note)[:limit], truncated=True)
