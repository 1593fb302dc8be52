"""Finished rollouts as verifiers publish them, for tests of what comes after."""

from array import array
from typing import Any

from broker import codec
from broker.messages import (
    CallRecord,
    Failure,
    ModelResult,
    Result,
    Task,
    Tokens,
    ToolResult,
    Trajectory,
    Usage,
    Verdict,
    VersionSpan,
)

Item = dict[str, Any]


def said(role: str, text: str) -> Item:
    return {"type": "message", "role": role, "content": text}


def tokens(prompt: list[int], generated: list[int], logprob: float = -0.5) -> Tokens:
    return Tokens(
        prompt_ids=array("i", prompt).tobytes(),
        generated_ids=array("i", generated).tobytes(),
        logprobs=array("f", [logprob] * len(generated)).tobytes(),
    )


def model_call(
    path: str,
    new: list[Item],
    output: list[Item],
    *,
    parent: str | None = None,
    shared: int = 0,
    tokens: Tokens | None = None,
    **result: Any,
) -> bytes:
    fields: dict[str, Any] = {
        "usage": Usage(prompt_tokens=10, generated_tokens=5, cost_usd=0.25),
        "versions": VersionSpan(min=3, max=3),
        "finish_reason": "stop",
        "model": "tiny",
        "response_id": f"resp_{path}",
    }
    answer = ModelResult(items=codec.pack(output), tokens=tokens, **(fields | result))
    return codec.pack(
        CallRecord(
            path=path,
            kind="model",
            parent=parent,
            shared_items=shared,
            new_items=tuple(codec.pack(item) for item in new),
            name="tiny",
            result=codec.pack(answer),
            started_at=1.0,
            finished_at=2.0,
        )
    )


def tool_call(path: str, output: str) -> bytes:
    result = codec.pack(ToolResult(output=output, seconds=0.5))
    return codec.pack(
        CallRecord(path=path, kind="tool", name="add", request=b'{"a": 1}', result=result)
    )


#: Two steps: a tool call, its output, an answer; tokens for both model calls.
TWO_STEPS = (
    model_call(
        "0",
        [said("system", "Add."), said("user", "1+1?")],
        [{"type": "function_call", "call_id": "c1", "name": "add", "arguments": '{"a": 1}'}],
        tokens=tokens([1, 2], [3]),
    ),
    tool_call("0.tool.0", "2"),
    model_call(
        "1",
        [{"type": "function_call_output", "call_id": "c1", "output": "2"}],
        [said("assistant", "It is"), said("assistant", "2")],
        parent="0",
        shared=3,
        tokens=tokens([1, 2, 3, 4], [5, 6]),
        versions=VersionSpan(min=3, max=4),
    ),
)


def result(
    task_index: int = 0,
    repeat: int = 0,
    *,
    run: str = "run-a",
    generation: str = "g1",
    row: bytes = b'{"question": "1+1?"}',
    calls: tuple[bytes, ...] = TWO_STEPS,
    main: str | None = "1",
    prompt_items: int = 2,
    **more: Any,
) -> Result:
    """A rollout of a task that nobody published; `more` as in `result_of`."""
    task = Task(
        run=run,
        generation=generation,
        task_index=task_index,
        repeat=repeat,
        environment="calculator",
        model="tiny",
        row=row,
        audiences=("collect",),
    )
    return result_of(task, calls=calls, main=main, prompt_items=prompt_items, **more)


def result_of(
    task: Task,
    *,
    calls: tuple[bytes, ...],
    main: str | None,
    prompt_items: int,
    reward: float | None = 1.0,
    error: Failure | None = None,
    verdict: Verdict | None = None,
    **trajectory: Any,
) -> Result:
    """The scored rollout of a task; with `error`, a failed one."""
    fields: dict[str, Any] = {
        "task": codec.pack(task),
        "rollout": task.journal_key,
        "epoch": "e1",
        "attempt": 1,
        "status": "completed" if error is None else "failed",
        "error": error,
        "calls": calls,
        "main": main,
        "prompt_items": prompt_items,
        "started_at": 1.0,
        "finished_at": 3.5,
    }
    return Result(
        rollout_id=task.rollout_id,
        task_index=task.task_index,
        repeat=task.repeat,
        run=task.run,
        generation=task.generation,
        trajectory=codec.pack(Trajectory(**(fields | trajectory))),
        verdict=verdict or Verdict(reward=reward if error is None else None),
    )


def failed(task_index: int = 0, repeat: int = 0, kind: Any = "tool", **more: Any) -> Result:
    return result(task_index, repeat, error=Failure(kind=kind, message="broke"), **more)
