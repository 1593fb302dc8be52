"""A Responses answer to a ModelResult."""

from collections.abc import Mapping
from typing import Any, Final

from broker import codec
from broker.messages import ModelResult
from workers.model_gateway.answer_chat import instead, responses_usage
from workers.model_gateway.answers import completed
from workers.model_gateway.backend import BackendRequest
from workers.model_gateway.config import Price
from workers.model_gateway.conversion import MALFORMED, assistant_items
from workers.model_gateway.failures import embedded_error, unusable
from workers.spec import Item

#: As what an answer ends that has been said; else it failed, was cancelled, or is not over.
_ENDED: Final = ("completed", "incomplete", None)
#: What every agent relies on.
_HOLDS: Final[Mapping[str, Mapping[str, type]]] = {
    "message": {"content": list},
    "function_call": {"name": str, "arguments": str},
}


def responses_result(
    answer: Mapping[str, Any], request: BackendRequest, price: Price, seconds: float
) -> ModelResult:
    """What was sampled. Raises Retryable where the answer lacks what every answer has."""
    output = answer.get("output")
    if (status := answer.get("status", "completed")) not in _ENDED:
        raise embedded_error(answer.get("error") or f"the response is {status!r}")
    if not isinstance(output, list):
        raise unusable(f"it has no output{instead(answer)}")
    try:
        whole = [_whole(item) for item in output] or assistant_items({})
        items = codec.pack(completed(whole, request))
        codec.unpack(items)  # anything may be in them: within what can be read again
        finish_reason = _finish_reason(answer, output)
    except MALFORMED as e:
        raise unusable(f"its output is malformed ({type(e).__name__}: {e})") from e
    return ModelResult(
        items=items,
        finish_reason=finish_reason,
        usage=responses_usage(answer.get("usage"), price),
        model=str(answer.get("model") or ""),
        response_id=str(answer.get("id") or ""),
        seconds=seconds,
    )


def _whole(item: Any) -> Item:
    """The item, if it has what agents rely on. Raises TypeError."""
    wanted = _HOLDS.get(item.get("type"), {})
    for key, kind in wanted.items():
        if not isinstance(item.get(key), kind):
            raise TypeError(f"{item['type']} has no proper {key!r}: {item.get(key)!r}")
    if item.get("type") == "message" and not all(isinstance(p, dict) for p in item["content"]):
        raise TypeError("message has a part that is no object")
    whole: Item = item
    return whole


def _finish_reason(answer: Mapping[str, Any], output: list[Item]) -> str:
    """Chat Completions' words for why it ended."""
    reason = (answer.get("incomplete_details") or {}).get("reason")
    if reason == "max_output_tokens":
        return "length"
    if reason:
        return str(reason)
    return "tool_calls" if any(i.get("type") == "function_call" for i in output) else "stop"
