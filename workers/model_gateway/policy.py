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
from workers.model_gateway.asgi import Asks
from workers.model_gateway.backend import Retryable
from workers.model_gateway.config import ModelConfig
from workers.model_gateway.http import Body
from workers.model_gateway.http_client import HttpClient
from workers.model_gateway.masking import masked

#: `wait` lasts as long as the longest running answer; loading, as the disk takes.
_TIMEOUT_S: Final = 1800.0
#: Not a number, so that rows have none.
_UNKNOWN: Final = "unknown"


async def update_policy(
    config: ModelConfig,
    *,
    version: int,
    path: str,
    mode: PauseMode = "keep",
    before: str = "",
    urls: Sequence[str] | None = None,
    inside: Asks | None = None,
) -> None:
    """Have every endpoint of the model load the weights in `path`, all at the same time.

    `before`: what an endpoint loads again that cannot load `path`, since a load that fails leaves
    an engine without weights: vLLM 0.32 dies of it when resumed. Empty: what it started with.
    `urls`: only these of its endpoints.
    `inside`: the engine in this process, of a model that has one.

    Raises PolicyUpdateFailed naming the first endpoint that failed; others may have succeeded,
    and running it again with the same version is harmless.
    """
    failures: list[PolicyUpdateFailed] = []
    async with asyncio.TaskGroup() as group:
        for url in config.urls if urls is None else urls:
            engine = _Engine(config, url, inside)
            group.create_task(_collected(_update(engine, version, path, mode, before), failures))
    if failures:
        raise _advised(failures, len(urls or config.urls))


def _advised(failures: Sequence[PolicyUpdateFailed], endpoints: int) -> PolicyUpdateFailed:
    """The first failure, how the others stand, and what to do."""
    rest = f"{endpoints - len(failures)} of {endpoints} endpoints have the new weights"
    return PolicyUpdateFailed(f"{failures[0]} ({rest}; put it right, then update again)")


async def _collected(update: Awaitable[None], failures: list[PolicyUpdateFailed]) -> None:
    """One endpoint's failure must not stop another in its middle."""
    try:
        await update
    except PolicyUpdateFailed as e:
        failures.append(e)


async def _update(engine: "_Engine", version: int, path: str, mode: PauseMode, before: str) -> None:
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(engine.close)
        await engine.post(f"/pause?mode={mode}")
        try:
            await engine.load(path, before)
            try:
                await engine.flush()
                await engine.name(str(version))
            except PolicyUpdateFailed:
                await engine.name(_UNKNOWN)
                raise
        finally:
            await engine.post("/resume")


class _Engine:
    def __init__(self, config: ModelConfig, url: str, inside: Asks | None) -> None:
        self._config = config
        self._root = url.rstrip("/").removesuffix("/v1")
        self._shared = inside is not None
        self._http = inside or HttpClient(url, config.api_key, keeps=False)

    async def close(self) -> None:
        if not self._shared:
            await self._http.close()

    async def load(self, path: str, before: str) -> None:
        """Take the weights there, or the adapter in the place of the one that is asked."""
        if self._config.lora:  # vLLM keeps the old adapter if it cannot load the new one
            return await self._load_adapter(path)
        try:
            await self._load_weights(path)
        except PolicyUpdateFailed as e:
            await self._restore(before, e)
            raise

    async def name(self, version: str) -> None:
        """What generations say sampled them."""
        await self.post("/update_weight_version", {"new_version": version})

    async def _restore(self, before: str, error: PolicyUpdateFailed) -> None:
        """Load the old weights again; where that fails, no row shall name a version."""
        try:
            await self._load_weights(before or await self._first_path())
        except PolicyUpdateFailed as e:
            with contextlib.suppress(PolicyUpdateFailed):
                await self.name(_UNKNOWN)
            text = f"{error}; nor its old weights again, so restart that server ({e})"
            raise PolicyUpdateFailed(text) from e

    async def _first_path(self) -> str:
        """Where the weights are that the server started with."""
        try:
            listed = msgspec.json.decode(await self.post("/v1/models", method="GET"))
            return str(listed["data"][0]["root"])
        except (msgspec.DecodeError, LookupError, TypeError) as e:
            why = f"it does not say where its weights are ({type(e).__name__}: {e})"
            raise self._failure("/v1/models", why) from e

    async def _load_weights(self, path: str) -> None:
        reload = {"method": "reload_weights", "kwargs": {"weights_path": path}}
        await self.post("/collective_rpc", reload)

    async def _load_adapter(self, path: str) -> None:
        name = self._config.served_name or self._config.name
        adapter = {"lora_name": name, "lora_path": path, "load_inplace": True}
        await self.post("/v1/load_lora_adapter", adapter)

    async def flush(self) -> None:
        """Forget prefixes computed with the old weights, those of frozen requests too."""
        answer = await self.post("/reset_prefix_cache?reset_running_requests=true")
        told = msgspec.json.decode(answer) if answer.strip() else {}
        if isinstance(told, dict) and told.get("success") is False:  # with status 200
            raise self._failure("/reset_prefix_cache", "it kept the old prefixes")

    async def post(
        self, path: str, body: dict[str, Any] | None = None, *, method: str = "POST"
    ) -> Body:
        """The answer's body. Raises PolicyUpdateFailed with the server's words."""
        packed = b"" if body is None else msgspec.json.encode(body)
        target = urlsplit(self._root).path + path
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                answer = await self._http.request(method, target, packed)
        except (ConnectionError, Retryable, TimeoutError) as e:
            raise self._failure(path, f"{type(e).__name__}: {e}") from e
        if answer.status != 200:
            text = answer.body.decode(errors="replace")
            raise self._failure(path, f"HTTP {answer.status}: {text}")
        return answer.body

    def _failure(self, path: str, why: str) -> PolicyUpdateFailed:
        lora = path == "/v1/load_lora_adapter"
        needs = "VLLM_ALLOW_RUNTIME_LORA_UPDATING" if lora else "VLLM_SERVER_DEV_MODE"
        hint = f" (is {needs}=1 set in the server's environment?)" if "HTTP 404" in why else ""
        where = mask_url(self._root + path)
        return PolicyUpdateFailed(masked(f"{where}: {why}{hint}", self._config.secrets))
