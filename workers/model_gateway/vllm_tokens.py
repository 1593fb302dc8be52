"""Tokens in, tokens out: a conversation goes on from the tokens that were sampled.

A chat server tokenises the whole history anew at every call, which need not give the tokens that
the policy sampled. So the history's own tokens are kept, only what was said since is rendered by
the server's template, and where that differs from the server's rendering of everything, vLLM's
token endpoints get our tokens. A template that changes the history itself (drops old thoughts)
begins a branch: the call is made as the template says, and its prompt tells so.
"""

import logging
import time
from array import array
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from broker.messages import VersionSpan
from workers.model_gateway.backend import BackendRequest, ContextOverflow, Refused
from workers.model_gateway.failures import unusable
from workers.model_gateway.http import Body
from workers.model_gateway.remarks import chat_messages

log = logging.getLogger(__name__)

RENDER: Final = "/v1/chat/completions/render"
GENERATE: Final = "/inference/v1/generate"
DERENDER: Final = "/v1/chat/completions/derender"

#: What a template may put between the end of an answer and what follows it.
_MOST_AFTER_ANSWER: Final = 3

#: How the refusals of a server begin that has no token endpoints, or not for us.
_NOT_THERE: Final = ("HTTP 403", "HTTP 404", "HTTP 405")
#: One odd answer, of a proxy or while it starts, costs no more than a minute's tokens.
_LOOK_AGAIN_S: Final = 60.0

Post = Callable[[str, Mapping[str, Any]], Awaitable[Body]]


class _Rendered(msgspec.Struct, gc=False):
    token_ids: list[int]
    sampling_params: dict[str, Any] = {}
    features: Any = None


class _Logprob(msgspec.Struct, gc=False):
    logprob: float


class _Logprobs(msgspec.Struct, gc=False):
    content: list[_Logprob] | None = None


class _Weights(msgspec.Struct, gc=False):
    version: str


class _Choice(msgspec.Struct, gc=False):
    token_ids: list[int]
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None
    weight_versions: list[_Weights] | None = None


class _Generated(msgspec.Struct, gc=False):
    choices: list[_Choice]
    request_id: str = ""
    weight_versions: list[_Weights] | None = None


@dataclass(frozen=True, slots=True)
class Continued:
    """What was sampled after a prompt that extends the known tokens."""

    prompt_ids: list[int]
    token_ids: list[int]
    logprobs: list[float] | None
    finish_reason: str | None
    versions: VersionSpan | None
    chat: Body
    """The server's Chat Completions answer for it, tool calls parsed."""


class _NoRendering(Exception):
    """Something answers there that is no vLLM."""


class TokenPath:
    """The token endpoints of one server, while it has them."""

    def __init__(self, post: Post, *, look_again_s: float = _LOOK_AGAIN_S) -> None:
        self._post = post
        self._look_again_s = look_again_s
        self._look_at = float("-inf")

    @property
    def there(self) -> bool:
        """Whether the server has them: it did not say otherwise in the last minute."""
        return time.monotonic() >= self._look_at

    async def generate(self, request: BackendRequest, body: Mapping[str, Any]) -> Continued | None:
        """Sample after the request's known tokens; None where chat does the same, or must do.

        Raises BackendErrors, of generating itself.
        """
        if not request.known_ids or not self.there:
            return None
        try:
            found = await self._prompt(request, body)
        except ContextOverflow:
            raise
        except Refused as e:  # chat says what is wrong with the request
            if str(e).startswith(_NOT_THERE) and request.model not in str(e):
                self._look_at = time.monotonic() + self._look_again_s
            return None
        except _NoRendering as e:
            self._look_at = time.monotonic() + self._look_again_s
            log.warning("no token endpoints: the history is sent as text", extra={"why": str(e)})
            return None
        if found is None:
            return None
        prompt_ids, sampling = found
        return await self._sampled(request, body, prompt_ids, sampling)

    async def _prompt(
        self, request: BackendRequest, body: Mapping[str, Any]
    ) -> tuple[list[int], dict[str, Any]] | None:
        whole = await self._rendered(body)
        known = array("i", request.known_ids).tolist()
        if whole.features is not None or whole.token_ids[: len(known)] == known:
            return None
        before = chat_messages(request.remarks[: request.known_items])
        closed = await self._rendered({**body, "messages": before, "add_generation_prompt": False})
        prompt_ids = continuation(known, closed.token_ids, whole.token_ids)
        if prompt_ids is None:
            return None
        sampling = whole.sampling_params
        if "max_tokens" not in body and isinstance(most := sampling.get("max_tokens"), int):
            sampling["max_tokens"] = max(most + len(whole.token_ids) - len(prompt_ids), 1)
        return prompt_ids, sampling

    async def _rendered(self, body: Mapping[str, Any]) -> _Rendered:
        answer = await self._post(RENDER, body)
        try:
            return msgspec.json.decode(answer, type=_Rendered)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
            raise _NoRendering(f"{RENDER} answers something else ({e})") from e

    async def _sampled(
        self,
        request: BackendRequest,
        body: Mapping[str, Any],
        prompt_ids: list[int],
        sampling: dict[str, Any],
    ) -> Continued:
        ask = {
            "model": request.model,
            "request_id": body["request_id"],
            "token_ids": prompt_ids,
            "sampling_params": {**sampling, "logprobs": 0},
            "priority": body.get("priority", 0),
        }
        raw = await self._post(GENERATE, ask)
        answer: _Generated = _read(_Generated, raw)
        if not answer.choices:
            raise unusable("it has no choices")
        choice = answer.choices[0]
        chat: Body = b""
        if choice.finish_reason not in ("abort", "error"):
            chat = await self._post(
                DERENDER,
                {
                    "model": request.model,
                    "generate_response": msgspec.Raw(raw),
                    "prompt_token_ids": prompt_ids,
                    "prompt_tokens": len(prompt_ids),
                    "chat_request": body,
                },
            )
        logprobs = choice.logprobs.content if choice.logprobs else None
        return Continued(
            prompt_ids=prompt_ids,
            token_ids=choice.token_ids,
            logprobs=None if logprobs is None else [token.logprob for token in logprobs],
            finish_reason=choice.finish_reason,
            versions=_span(choice.weight_versions or answer.weight_versions or ()),
            chat=chat,
        )


def continuation(
    known: Sequence[int], closed: Sequence[int], whole: Sequence[int]
) -> list[int] | None:
    """The known tokens, what the template closes an answer with, and what was said since.

    `closed` is the known part of the conversation as the template renders it, `whole` all of it.
    None where the template changes the known part itself, or closes it in a way we don't see.
    """
    if list(whole[: len(closed)]) != list(closed):
        return None
    for more in range(min(_MOST_AFTER_ANSWER + 1, len(closed))):
        end = len(closed) - more
        if closed[end - 1] == known[-1]:
            return [*known, *closed[end:], *whole[len(closed) :]]
    return None


def _span(weights: Sequence[_Weights]) -> VersionSpan | None:
    """From the oldest to the newest; None where any has no number."""
    versions = [int(w.version) for w in weights if w.version.isdecimal()]
    if not versions or len(versions) < len(weights):
        return None
    return VersionSpan(min=min(versions), max=max(versions))


def _read(type_: type[Any], body: Body) -> Any:
    try:
        return msgspec.json.decode(body, type=type_)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise unusable(f"it is no answer of a token endpoint ({e})") from e


__all__ = ["Continued", "TokenPath", "continuation"]
