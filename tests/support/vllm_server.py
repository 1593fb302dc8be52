"""A vLLM server as far as the gateway can tell: tokens, versions, pausing, weights, priorities."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from tests.support import provider


@dataclass(slots=True)
class FakeVllm:
    """A running engine; its words are the version of the weights that each was sampled with."""

    server: provider.FakeProvider
    words: int = 4
    """Of every answer."""
    word_s: float = 0.02
    weights: str = ""
    version: str = "default"
    loads: list[str] = field(default_factory=list)
    aborted: int = 0
    sampled: int = 0
    """Words so far, of all answers."""
    sampled_while_loading: int = 0
    refuses_weights: bool = False
    _running: int = 0
    _aborts: int = 0
    _going: asyncio.Event = field(default_factory=asyncio.Event)
    _loading: bool = False
    _mode: str = "keep"

    @property
    def url(self) -> str:
        return self.server.url

    def restart(self) -> None:
        """Come back with the weights that it was first started with."""
        self.weights, self.version = "", "default"

    async def behave(self, request: provider.Seen, writer: asyncio.StreamWriter) -> None:
        path, _, query = request.path.partition("?")
        match path:
            case "/v1/chat/completions":
                answer = provider.answers(await self._chat())
            case "/pause":
                await self._pause(query)
                answer = provider.answers({})
            case "/collective_rpc":
                answer = await self._load(request.json["kwargs"]["weights_path"])
            case "/reset_prefix_cache":
                answer = provider.answers({"success": True})
            case "/update_weight_version":
                self.version = request.json["new_version"]
                answer = provider.answers({})
            case "/resume":
                self._going.set()
                answer = provider.answers({})
            case _:
                answer = provider.error(404, f"no {path}")
        await answer(request, writer)

    async def weight_info(self, request: provider.Seen, writer: asyncio.StreamWriter) -> None:
        await provider.answers({"weight_version": self.version})(request, writer)

    async def _sample(self) -> tuple[list[str], str]:
        """The words, and why it ended."""
        words: list[str] = []
        aborts = self._aborts
        self._running += 1
        try:
            while len(words) < self.words:
                await asyncio.sleep(self.word_s)
                if self._aborts > aborts:
                    self.aborted += 1
                    return words, "abort"
                if self._running_may_go():
                    self.sampled_while_loading += self._loading
                    self.sampled += 1
                    words.append(self.weights or "0")
                else:
                    await self._going.wait()
            return words, "stop"
        finally:
            self._running -= 1

    def _running_may_go(self) -> bool:
        return self._going.is_set() or self._mode == "wait"

    async def _pause(self, query: str) -> None:
        self._mode = query.partition("mode=")[2].partition("&")[0] or "abort"
        self._going.clear()
        if self._mode == "abort":
            self._aborts += 1
        while self._mode != "keep" and self._running:  # noqa: ASYNC110
            await asyncio.sleep(0.005)

    async def _load(self, path: str) -> provider.Behaviour:
        if self.refuses_weights:
            return provider.error(500, "no such directory")
        self.loads.append(path)
        self._loading = True
        await asyncio.sleep(0.1)
        self.weights, self._loading = path, False
        return provider.answers({"results": [None]})

    async def _chat(self) -> dict[str, Any]:
        await self._going.wait()
        words, reason = await self._sample()
        answer = provider.chat({"role": "assistant", "content": " ".join(words)}, reason)
        answer["prompt_token_ids"] = [1, 2, 3]
        answer["choices"][0] |= {
            "token_ids": list(range(len(words))),
            "logprobs": {"content": [{"token": w, "logprob": -0.5} for w in words]},
        }
        return answer


@contextlib.asynccontextmanager
async def running(**fields: Any) -> AsyncIterator[FakeVllm]:
    """An engine for the length of a test."""
    async with provider.running() as server:
        engine = FakeVllm(server, **fields)
        engine._going.set()
        server.default = engine.behave
        server.other["/weight_info"] = engine.weight_info
        server.other["/health"] = provider.answers({})
        yield engine
