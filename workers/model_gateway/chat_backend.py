"""An OpenAI-compatible server (SGLang, llama.cpp, ollama, LiteLLM, TGI, ...) without the SDK.

The same requests, answers and errors as through the `openai` SDK, for a fraction of its CPU.
"""

import functools
import time
from collections.abc import Mapping
from typing import Any

import msgspec

from broker.messages import ModelResult
from workers.model_gateway.answer_chat import chat_result, json_object
from workers.model_gateway.backend import TERMS_KEPT, BackendRequest, Refused, Terms
from workers.model_gateway.config import ModelConfig
from workers.model_gateway.congestion import EngineLoad
from workers.model_gateway.conversion import UNSENDABLE
from workers.model_gateway.failures import serves
from workers.model_gateway.fields import chat_terms
from workers.model_gateway.remarks import chat_messages
from workers.model_gateway.server import ModelServer


class ChatBackend:
    """One endpoint that speaks Chat Completions, at its own URL."""

    def __init__(self, config: ModelConfig, base_url: str) -> None:
        self._config = config
        self._server = ModelServer(config, base_url)

    async def generate(self, request: BackendRequest) -> ModelResult:
        """Ask once (backend.Backend)."""
        try:
            packed = msgspec.json.encode(_body(request))
        except UNSENDABLE as e:
            raise Refused(f"the conversation cannot be sent: {type(e).__name__}: {e}") from e
        started = time.monotonic()
        with self._server.within(request.timeout_s):
            answer = await self._server.post(f"{self._server.base}/chat/completions", packed)
        seconds = time.monotonic() - started
        return chat_result(json_object(answer), request, self._config.price, seconds)

    async def alive(self, timeout_s: float) -> bool:
        """Whether anything but a server error is answered there (endpoint.Probed)."""
        return await serves(self._server.owners(timeout_s))

    async def load(self) -> EngineLoad | None:
        """Nothing is known of foreign engines."""
        return None

    @property
    def resent(self) -> int:
        """Requests sent twice (endpoint.Probed)."""
        return self._server.resent

    def policy_changed(self, version: int | None) -> None:
        """Nothing is known of foreign weights."""

    async def close(self) -> None:
        """Close the connections."""
        await self._server.close()


def _body(request: BackendRequest) -> dict[str, Any]:
    messages = chat_messages(request.remarks)
    return {"model": request.model, "messages": messages, **_fields(request.terms)}


@functools.lru_cache(TERMS_KEPT)
def _fields(terms: Terms) -> Mapping[str, msgspec.Raw]:
    """What all requests of the same terms have in common, as JSON."""
    fields = chat_terms(terms, "max_tokens")
    return {key: msgspec.Raw(msgspec.json.encode(value)) for key, value in fields.items()}
