"""New weights for a vLLM server while rollouts run: pause, load, name the version, go on.

Requests that are running when it pauses are frozen and go on under the new weights (`keep`), are
finished first (`wait`), or are aborted, which the gateway makes again (`abort`). Requests that
come meanwhile wait in the engine. Needs the server's dev mode (VLLM_SERVER_DEV_MODE=1).
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from broker.masking import mask_url
from broker.shared.base import PauseMode, PolicyUpdateFailed
from workers.model_gateway.backend import Retryable
from workers.model_gateway.config import ModelConfig
from workers.model_gateway.http_client import HttpClient
from workers.model_gateway.masking import masked

#: `wait` lasts as long as the longest running answer; loading, as the disk takes.
_TIMEOUT_S: Final = 1800.0


async def update_policy(
    config: ModelConfig,
    *,
    version: int,
    path: str,
    mode: PauseMode = "keep",
    urls: Sequence[str] | None = None,
) -> None:
    """Have every endpoint of the model load the weights in `path`, all at the same time.

    `urls`: only these of its endpoints.

    Raises PolicyUpdateFailed naming the first endpoint that failed; others may have succeeded,
    and running it again with the same version is harmless.
    """
    failures: list[PolicyUpdateFailed] = []
    async with asyncio.TaskGroup() as group:
        for url in config.urls if urls is None else urls:
            group.create_task(_collected(_update(config, url, version, path, mode), failures))
    if failures:
        raise failures[0]


async def _collected(update: Awaitable[None], failures: list[PolicyUpdateFailed]) -> None:
    """One endpoint's failure must not stop another in its middle."""
    try:
        await update
    except PolicyUpdateFailed as e:
        failures.append(e)


async def _update(config: ModelConfig, url: str, version: int, path: str, mode: PauseMode) -> None:
    async with contextlib.AsyncExitStack() as stack:
        engine = _Engine(config, url)
        stack.push_async_callback(engine.close)
        await engine.post(f"/pause?mode={mode}")
        try:
            reload = {"method": "reload_weights", "kwargs": {"weights_path": path}}
            await engine.post("/collective_rpc", reload)
            await engine.flush()
            await engine.post("/update_weight_version", {"new_version": str(version)})
        finally:
            await engine.post("/resume")


class _Engine:
    def __init__(self, config: ModelConfig, url: str) -> None:
        self._config = config
        self._root = url.rstrip("/").removesuffix("/v1")
        self._http = HttpClient(url, config.api_key, resends=False)

    async def close(self) -> None:
        await self._http.close()

    async def flush(self) -> None:
        """Forget prefixes computed with the old weights, those of frozen requests too."""
        answer = await self.post("/reset_prefix_cache?reset_running_requests=true")
        told = msgspec.json.decode(answer) if answer.strip() else {}
        if isinstance(told, dict) and told.get("success") is False:  # with status 200
            raise self._failure("/reset_prefix_cache", "it kept the old prefixes")

    async def post(self, path: str, body: dict[str, Any] | None = None) -> bytes:
        packed = b"" if body is None else msgspec.json.encode(body)
        target = urlsplit(self._root).path + path
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                answer = await self._http.request("POST", target, packed)
        except (ConnectionError, Retryable, TimeoutError) as e:
            raise self._failure(path, f"{type(e).__name__}: {e}") from e
        if answer.status != 200:
            text = answer.body.decode(errors="replace")
            raise self._failure(path, f"HTTP {answer.status}: {text}")
        return answer.body

    def _failure(self, path: str, why: str) -> PolicyUpdateFailed:
        hint = " (is VLLM_SERVER_DEV_MODE=1 set?)" if "HTTP 404" in why else ""
        where = mask_url(self._root + path)
        return PolicyUpdateFailed(masked(f"{where}: {why}{hint}", (self._config.api_key,)))
