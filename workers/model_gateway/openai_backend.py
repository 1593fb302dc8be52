"""OpenAI and Azure OpenAI, and servers behind a proxy, through the `openai` SDK.

The SDK builds, signs and sends requests; it never retries (the gateway does) and its answers are
read from their bytes, within a size, since a provider's JSON may be anything.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

import httpx2
import openai

from broker.errors import UsageError
from broker.messages import ModelResult
from workers.model_gateway.answer_chat import chat_result, json_object
from workers.model_gateway.answer_responses import responses_result
from workers.model_gateway.backend import BackendRequest, Refused, Retryable
from workers.model_gateway.config import ModelConfig, chosen_api
from workers.model_gateway.congestion import EngineLoad
from workers.model_gateway.conversion import (
    OPEN_SERVER,
    OPENAI,
    UNSENDABLE,
    messages_of,
)
from workers.model_gateway.failures import serves, status_error
from workers.model_gateway.fields import chat_terms, responses_fields
from workers.model_gateway.http import joined
from workers.model_gateway.masking import masked
from workers.model_gateway.server import owners_in
from workers.model_gateway.transport import AiohttpTransport


class OpenAIBackend:
    """One endpoint that speaks OpenAI's Chat Completions or Responses."""

    def __init__(self, config: ModelConfig, base_url: str) -> None:
        self._config = config
        self._responses = chosen_api(config.api, base_url) == "responses"
        self._own = config.azure is not None or "api.openai.com" in base_url
        self._transport = AiohttpTransport()
        try:
            self._client = _client(config, base_url, self._transport)
        except openai.OpenAIError as e:  # no key for Azure
            raise UsageError(f"model {config.name!r}: {e}") from None

    async def generate(self, request: BackendRequest) -> ModelResult:
        """Ask once (backend.Backend)."""
        try:
            path, body = self._body(request)
        except UNSENDABLE as e:
            raise Refused(f"the conversation cannot be sent: {type(e).__name__}: {e}") from e
        started = time.monotonic()
        answer = json_object(await self._post(path, body, request))
        read = responses_result if self._responses else chat_result
        return read(answer, request, self._config.price, time.monotonic() - started)

    async def owners(self, timeout_s: float) -> set[str]:
        """Who owns the models listed there; empty where none are. Raises BackendError."""
        async with self._typed_errors(timeout_s), asyncio.timeout(timeout_s):
            try:
                answer = await self._client.models.with_raw_response.list()
            except (openai.NotFoundError, openai.BadRequestError):  # there, but lists no models
                return set()
            return owners_in(answer.text)

    async def alive(self, timeout_s: float) -> bool:
        """Whether anything but a server error is answered there (endpoint.Probed)."""
        return await serves(self.owners(timeout_s))

    async def load(self) -> EngineLoad | None:
        """Nothing is known of foreign engines."""
        return None

    @property
    def resent(self) -> int:
        """Requests sent twice (endpoint.Probed)."""
        return self._transport.resent

    def policy_changed(self, version: int | None) -> None:
        """Nothing is known of foreign weights."""

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    def _body(self, request: BackendRequest) -> tuple[str, dict[str, Any]]:
        terms = request.terms
        if self._responses:
            body = {"model": request.model, "input": list(request.items)}
            body |= {"tools": list(terms.tools)} if terms.tools else {}
            return "/responses", body | responses_fields(terms.options)
        messages = messages_of(request.items, OPENAI if self._own else OPEN_SERVER)
        length = "max_completion_tokens" if self._own else "max_tokens"
        body = {"model": request.model, "messages": messages} | chat_terms(terms, length)
        return "/chat/completions", body

    async def _post(self, path: str, body: Mapping[str, Any], request: BackendRequest) -> bytes:
        async with self._typed_errors(request.timeout_s), asyncio.timeout(request.timeout_s):
            return await self._send(path, body, request)

    @contextlib.asynccontextmanager
    async def _typed_errors(self, timeout_s: float) -> AsyncIterator[None]:
        try:
            yield
        except openai.APIStatusError as e:
            text = self._masked(e.response.text)
            raise status_error(e.status_code, text, e.response.headers) from None
        except (openai.APITimeoutError, httpx2.TimeoutException, TimeoutError):
            raise Retryable(f"no answer within {timeout_s:g} s") from None
        except (openai.APIConnectionError, httpx2.HTTPError) as e:
            cause = e.__cause__ or e
            why = self._masked(f"{type(cause).__name__}: {cause}")
            raise Retryable(f"the connection failed: {why}") from None

    async def _send(self, path: str, body: Mapping[str, Any], request: BackendRequest) -> bytes:
        create: Any = (
            self._client.responses.with_streaming_response.create
            if path == "/responses"
            else self._client.chat.completions.with_streaming_response.create
        )
        headers = {"X-Request-Id": request.request_id}
        if isinstance(self._client, openai.AsyncAzureOpenAI):
            headers = {"x-ms-client-request-id": request.request_id}
        async with create(
            **{"model": request.model, _CONVERSATION[path]: body[_CONVERSATION[path]]},
            extra_body={k: v for k, v in body.items() if k not in ("model", _CONVERSATION[path])},
            extra_headers=headers,
            timeout=httpx2.Timeout(request.timeout_s),
        ) as response:
            return await joined(response.iter_bytes())

    def _masked(self, text: str) -> str:
        return masked(text, self._config.secrets)


_CONVERSATION: Final = {"/responses": "input", "/chat/completions": "messages"}


def _client(config: ModelConfig, base_url: str, transport: AiohttpTransport) -> openai.AsyncOpenAI:
    key = config.api_key.reveal() if config.api_key else None
    http = httpx2.AsyncClient(transport=transport, follow_redirects=True)
    if (azure := config.azure) is not None:
        return openai.AsyncAzureOpenAI(
            azure_endpoint=base_url,
            azure_deployment=azure.deployment or config.served_name or config.name,
            api_version=azure.api_version,
            api_key=key,
            azure_ad_token=azure.ad_token.reveal() if azure.ad_token else None,
            max_retries=0,
            http_client=http,
        )
    # a server of one's own needs no key, the SDK does
    return openai.AsyncOpenAI(
        base_url=base_url, api_key=key or "none", max_retries=0, http_client=http
    )
