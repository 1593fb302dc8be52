"""A Chat Completions answer, as bytes off the wire, to a ModelResult."""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import msgspec

from broker import codec
from broker.messages import ModelResult, Usage
from workers.model_gateway.answers import completed
from workers.model_gateway.backend import BackendRequest
from workers.model_gateway.config import Price
from workers.model_gateway.conversion import MALFORMED, assistant_items
from workers.model_gateway.failures import embedded_error, ended_early, no_json, unusable
from workers.model_gateway.http import Body

#: A larger count is none: it would break what adds them up.
_MOST_TOKENS: Final = 2**40


def json_object(body: Body) -> dict[str, Any]:
    """The object in an answer's body. Raises Retryable where there is none, or an error in it."""
    try:
        answer = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise unusable(no_json(body.decode(errors="replace")) or f"not JSON ({e})") from e
    if not isinstance(answer, dict):
        raise unusable("not a JSON object")
    if answer.get("error"):
        raise embedded_error(answer["error"])
    return answer


def chat_result(
    answer: Mapping[str, Any], request: BackendRequest, price: Price, seconds: float
) -> ModelResult:
    """What was sampled. Raises Retryable where the answer lacks what every answer has."""
    choices = answer.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if isinstance(choice, dict) and (
        error := ended_early(choice.get("finish_reason"), choice.get("error"))
    ):
        raise error
    if not isinstance(choice, dict) or not isinstance(message, dict):
        raise unusable(f"it has no choices{instead(answer)}")
    try:
        items = codec.pack_json(completed(assistant_items(message), request))
    except MALFORMED as e:
        raise unusable(f"its message is malformed ({type(e).__name__}: {e})") from e
    return ModelResult(
        items=items,
        finish_reason=str(choice.get("finish_reason") or "stop"),
        usage=chat_usage(answer.get("usage"), price),
        model=str(answer.get("model") or ""),
        response_id=str(answer.get("id") or ""),
        seconds=seconds,
    )


def instead(answer: Mapping[str, Any]) -> str:
    """What an answer says in the place of choices, as some servers word errors."""
    said = answer.get("message") or answer.get("detail")
    return f" but says {said!r}" if said else ""


def chat_usage(usage: object, price: Price) -> Usage:
    """Tokens and cost; zeros where the provider says nothing."""
    return _usage(usage, _OF_CHAT, price)


def responses_usage(usage: object, price: Price) -> Usage:
    """The same, of a Responses answer."""
    return _usage(usage, _OF_RESPONSES, price)


class _Names(NamedTuple):
    """What an API calls the counts in its usage."""

    prompt: str
    prompt_details: str
    generated: str
    generated_details: str


_OF_CHAT: Final = _Names(
    "prompt_tokens", "prompt_tokens_details", "completion_tokens", "completion_tokens_details"
)
_OF_RESPONSES: Final = _Names(
    "input_tokens", "input_tokens_details", "output_tokens", "output_tokens_details"
)


def _usage(usage: object, names: _Names, price: Price) -> Usage:
    if not isinstance(usage, dict):
        return Usage()
    prompt, generated = _count(usage.get(names.prompt)), _count(usage.get(names.generated))
    read, written = usage.get(names.prompt_details), usage.get(names.generated_details)
    cached = _count(read.get("cached_tokens")) if isinstance(read, dict) else 0
    return Usage(
        prompt_tokens=prompt,
        generated_tokens=generated,
        cached_tokens=cached,
        reasoning_tokens=(
            _count(written.get("reasoning_tokens")) if isinstance(written, dict) else 0
        ),
        cost_usd=cost_usd(price, prompt, generated, cached),
    )


def _count(value: object) -> int:
    return value if type(value) is int and 0 < value <= _MOST_TOKENS else 0


def cost_usd(price: Price, prompt: int, generated: int, cached: int) -> float:
    """What a call cost, by the model's price."""
    if not (price.prompt or price.generated or price.cached):  # a server of one's own
        return 0.0
    cached_price = price.prompt if price.cached is None else price.cached
    cached = min(cached, prompt)
    fresh = prompt - cached
    return (fresh * price.prompt + cached * cached_price + generated * price.generated) / 1e6
