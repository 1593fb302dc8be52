"""What a provider's refusal means, whoever speaks to it: status and body to a typed error."""

import email.utils
import html
import json
import math
import re
import time
from collections.abc import Awaitable, Mapping
from typing import Any, Final

from workers.model_gateway.backend import BackendError, ContextOverflow, Refused, Retryable
from workers.model_gateway.masking import masked

#: The request was fine, its moment was not.
_RETRYABLE: Final = frozenset({408, 409, 425, 429})
#: An answer that cannot be used has been paid for: fewer tries than for one that never came.
UNUSABLE_TRIES: Final = 5

_OVERFLOW: Final = re.compile(
    r"context_length_exceeded|maximum context length|maximum model length|context[_ ]window"
    r"|exceeds? .{0,40}context (?:length|size)|(?:prompt|input) is too long"
    r"|longer than the model's context",
    re.IGNORECASE,
)
_PAGE: Final = re.compile(r"\s*<(?:!doctype html|html)\b", re.IGNORECASE)
_TITLE: Final = re.compile(r"<title[^>]*>(.*?)</title>", re.IGNORECASE | re.DOTALL)
_EVENTS: Final = re.compile(r"\s*(?:data|event|id|retry)?:")


def status_error(status: int, text: str, headers: Mapping[str, str]) -> BackendError:
    """The error for an answer that is not 2xx. `text` is its body, secrets masked already."""
    message = f"HTTP {status}: {_provider_message(text)}"
    if status in _RETRYABLE or status >= 500:
        if status == 429 and "insufficient_quota" in text:  # no waiting fills an account
            return Refused(message)
        return Retryable(
            message,
            kind="model" if status in (409, 425, 429) else "infra",
            retry_after_s=retry_after_s(headers),
            throttled=status == 429,
        )
    if 300 <= status < 400 and "location" in headers:
        return Refused(
            f"HTTP {status}: moved to {masked(headers['location'])}; use that as base URL"
        )
    if status in (400, 413, 422) and _OVERFLOW.search(text):
        return ContextOverflow(message)
    return Refused(message)


def embedded_error(error: Any) -> BackendError:
    """The error for an answer with status 200 that carries one (OpenRouter and kin)."""
    text = json.dumps({"error": error})
    code = str(error.get("code")) if isinstance(error, Mapping) else ""
    if re.fullmatch(r"[45]\d\d", code):
        status = int(code)
    elif "rate_limit" in code or code == "insufficient_quota":
        status = 429
    else:
        status = 400 if code.startswith("invalid_") or _OVERFLOW.search(text) else 502
    return status_error(status, text, {})


def ended_early(finish_reason: object, error: object = None) -> BackendError | None:
    """The error for a choice that the server gave up; None for one that the model ended."""
    if finish_reason == "abort":  # the engine's doing: new weights, a restart
        return Retryable("the engine aborted the request", healthy=True)
    if finish_reason == "error" or error:
        return embedded_error(error or "the provider gave up in the middle of the answer")
    return None


def unusable(why: str) -> Retryable:
    """The error for an answer with status 200 that nobody can read."""
    return Retryable(f"unusable answer: {why}", max_tries=UNUSABLE_TRIES)


async def serves(asking: Awaitable[object]) -> bool:
    """Whether `asking` ends in anything but a server error or silence: somebody is there."""
    try:
        await asking
    except Retryable as e:
        return e.throttled
    except BackendError:
        pass
    return True


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """How long the provider asks us to wait: milliseconds, seconds, or a date; else None."""
    try:
        if (ms := headers.get("retry-after-ms")) is not None:
            return _sane(float(ms) / 1000)
        if (value := headers.get("retry-after")) is None:
            return None
        if re.fullmatch(r"\s*[0-9.]+\s*", value):
            return _sane(float(value))
        return _sane(email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _sane(seconds: float) -> float | None:
    """Moments that have passed are now; a timer must never see what is no number."""
    return max(seconds, 0.0) if math.isfinite(seconds) else None


def no_json(text: str) -> str:
    """What an answer is that should have been JSON, as far as that helps; else empty."""
    if _PAGE.match(text):
        title = _TITLE.search(text)
        named = f" {' '.join(html.unescape(title[1]).split())!r}" if title else ""
        return f"a web page{named}, not an API: check the base URL, and what stands before it"
    if _EVENTS.match(text):
        return "a stream of events, which was not asked for"
    return ""


def _provider_message(text: str) -> str:
    """The provider's own words in a JSON error body; the body itself where it has another form."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return no_json(text) or text.strip() or "(empty body)"
    error = body.get("error", body) if isinstance(body, dict) else body
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail") or text
    return error if isinstance(error, str) else text
