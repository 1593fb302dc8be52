"""Call messages for tests that care about a few of their fields only."""

from typing import Any

from broker.messages import ModelCall, ToolCall

_CALL: dict[str, Any] = {
    "rollout": "r.g/0/0",
    "epoch": "e",
    "path": "0",
    "carrier": "c",
    "request_hash": b"h",
    "held": 0,
    "reply_to": "inbox",
    "deadline": 2e9,
    "run": "r",
    "environment": "env",
}


def model_call(**fields: Any) -> ModelCall:
    """A call of model `m`, with these fields otherwise."""
    return ModelCall(**{**_CALL, "model": "m", "input": (), **fields})


def tool_call(**fields: Any) -> ToolCall:
    """A call of `tool`, with these fields otherwise."""
    return ToolCall(**{**_CALL, "name": "tool", "call_id": "c", "arguments": "{}", **fields})
