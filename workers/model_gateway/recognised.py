"""An endpoint that is asked what it is, with the first call: vLLM gets the fast path."""

import asyncio
from typing import Final

from broker.messages import ModelResult
from workers.model_gateway.backend import BackendRequest
from workers.model_gateway.chat_backend import ChatBackend
from workers.model_gateway.config import ModelConfig
from workers.model_gateway.congestion import EngineLoad
from workers.model_gateway.endpoint import Probed
from workers.model_gateway.http import environment_proxy
from workers.model_gateway.vllm_backend import VllmBackend

_RECOGNISE_S: Final = 10.0


class RecognisedBackend:
    """Chat Completions at an unknown server; at vLLM, with tokens.

    While nobody answers nobody is recognised: a vLLM that is still starting never costs a rollout
    its tokens.
    """

    def __init__(self, config: ModelConfig, base_url: str) -> None:
        self._config = config
        self._base_url = base_url
        self._vllm = VllmBackend(config, base_url)
        self._chosen: Probed | None = None
        self._asking: asyncio.Task[Probed] | None = None

    async def generate(self, request: BackendRequest) -> ModelResult:
        """Ask once (backend.Backend)."""
        chosen = await self._backend() if self._chosen is None else self._chosen
        return await chosen.generate(request)

    async def alive(self, timeout_s: float) -> bool:
        """Whether anybody answers there (endpoint.Probed)."""
        return await (self._chosen or self._vllm).alive(timeout_s)

    async def load(self) -> EngineLoad | None:
        """vLLM's own figures."""
        return await self._vllm.load()

    @property
    def resent(self) -> int:
        """Requests sent twice."""
        return (self._chosen or self._vllm).resent

    def policy_changed(self, version: int | None) -> None:
        """It may have new weights."""
        self._vllm.policy_changed(version)

    async def close(self) -> None:
        """Close the connections."""
        if self._asking is not None:
            self._asking.cancel()
        await self._vllm.close()
        if self._chosen is not None:
            await self._chosen.close()

    async def _backend(self) -> Probed:
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._recognise())
            self._asking.add_done_callback(_seen)
        return await asyncio.shield(self._asking)

    async def _recognise(self) -> Probed:
        if "vllm" in await self._vllm.owners(_RECOGNISE_S):
            self._chosen = self._vllm
        else:
            self._chosen = compatible(self._config, self._base_url)
        return self._chosen


def compatible(config: ModelConfig, base_url: str) -> Probed:
    """Chat Completions at a server that is not OpenAI's; through the SDK where a proxy leads."""
    if environment_proxy(base_url) is None:
        return ChatBackend(config, base_url)
    from workers.model_gateway.openai_backend import OpenAIBackend

    return OpenAIBackend(config, base_url)


def _seen(task: asyncio.Task[Probed]) -> None:
    """Whoever waited has got its failure; there may be nobody left."""
    if not task.cancelled():
        task.exception()
