"""Call messages, and what owners ask, for tests that care about a few of their fields only."""

from functools import partial
from typing import Any

from broker.messages import ModelCall, ToolCall
from broker.topology import TOOL
from workers.waiting import Ask

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


def asked(**fields: Any) -> Ask:
    """To ask a tool of environment `env` at path `0`, with these fields otherwise."""
    call = partial(ToolCall, run="r", environment="env", name="tool", call_id="c", arguments="{}")
    ask: dict[str, Any] = {
        "path": "0",
        "request_hash": b"h",
        "exchange": TOOL.name,
        "key": "env",
        "message": call,
        "timeout_s": 1200.0,
        "on_timeout": lambda: b"timed out",
        "on_wait": lambda: b"nobody began",
    }
    return Ask(**{**ask, **fields})
