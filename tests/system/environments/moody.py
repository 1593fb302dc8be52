"""An environment in which everything goes wrong on request: the task's words say what."""

import json
import math

from warren import Environment, Item, PolicyRequest, Rollout, message_text

env = Environment("moody", system_prompt="Be moody.")


@env.tool(effect="pure")
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@env.tool(effect="pure")
def explode() -> str:
    """Raise."""
    raise RuntimeError("the tool exploded")


@env.reward
def fair(rollout: Rollout) -> float:
    match rollout.task.get("verdict"):
        case "raise":
            raise RuntimeError("the verifier exploded")
        case "nan":
            return math.nan
        case "range":
            return 7.0
    return 1.0 if rollout.answer else 0.5


#: What is asked -> the tool's name and its arguments, as the model writes them.
CALLS = {
    "unknown": ("addd", '{"a": 1, "b": 2}'),
    "not json": ("add", "{a: 1"),
    "no object": ("add", "[1, 2]"),
    "misfit": ("add", json.dumps({"a": "many", "c": 3})),
    "explode": ("explode", "{}"),
    "fine": ("add", '{"a": 1, "b": 2}'),
}


@env.policy
def scripted(request: PolicyRequest) -> list[Item] | str:
    asked = message_text(next(item for item in request.items if item.get("role") == "user"))
    if asked == "for ever" or (asked in CALLS and request.items[-1].get("role") == "user"):
        name, arguments = CALLS.get(asked, CALLS["fine"])
        call_id = f"call_{len(request.items)}"
        call = {"type": "function_call", "name": name, "arguments": arguments}
        return [{**call, "call_id": call_id}]
    return f"done: {asked}"
