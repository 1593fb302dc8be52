"""A Responses answer to a ModelResult."""

from collections.abc import Mapping
from typing import Any

from broker import codec
from broker.messages import ModelResult
from workers.model_gateway.answer_chat import responses_usage
from workers.model_gateway.answers import completed
from workers.model_gateway.backend import BackendRequest
from workers.model_gateway.config import Price
from workers.model_gateway.failures import embedded_error, unusable
from workers.spec import Item


def responses_result(
    answer: Mapping[str, Any], request: BackendRequest, price: Price, seconds: float
) -> ModelResult:
    """What was sampled. Raises Retryable where the answer lacks what every answer has."""
    output = answer.get("output")
    if answer.get("status") == "failed":
        raise embedded_error(answer.get("error") or "the response failed")
    if not isinstance(output, list) or not all(isinstance(item, dict) for item in output):
        raise unusable("it has no output")
    return ModelResult(
        items=codec.pack(completed(output, request)),
        finish_reason=_finish_reason(answer, output),
        usage=responses_usage(answer.get("usage"), price),
        model=str(answer.get("model") or ""),
        response_id=str(answer.get("id") or ""),
        seconds=seconds,
    )


def _finish_reason(answer: Mapping[str, Any], output: list[Item]) -> str:
    """Chat Completions' words for why it ended."""
    reason = (answer.get("incomplete_details") or {}).get("reason")
    if reason == "max_output_tokens":
        return "length"
    if reason:
        return str(reason)
    return "tool_calls" if any(i.get("type") == "function_call" for i in output) else "stop"
