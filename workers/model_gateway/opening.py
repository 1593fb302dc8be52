"""Opens a gateway from plain values: the one place where backends are chosen.

The `openai` SDK takes most of a second to import, aiohttp a tenth: what uses them imports them.
"""

import asyncio
import logging
import resource
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Final

from broker.base import Broker
from broker.errors import Unreachable
from broker.journal.base import Journal
from broker.masking import mask_url
from broker.shared.base import Shared
from broker.shared.memory import MemoryShared
from workers.executor import Executor
from workers.model_gateway.allowance import Allowance
from workers.model_gateway.asgi import Asks
from workers.model_gateway.backend import Backend, BackendError, ContextOverflow, Refused
from workers.model_gateway.config import ModelConfig, is_openai
from workers.model_gateway.endpoint import Endpoint, Probed
from workers.model_gateway.gateway import LANE_SHARE, ModelGateway
from workers.model_gateway.policy_watch import watching
from workers.model_gateway.pool import EndpointPool
from workers.model_gateway.scripted import ScriptedBackend, scripted_name
from workers.model_gateway.spending import Spending
from workers.spec import EnvironmentSpec
from workers.threads import Threads

if TYPE_CHECKING:
    from workers.model_gateway.openai_backend import OpenAIBackend
    from workers.model_gateway.vllm_backend import VllmBackend

log = logging.getLogger(__name__)

#: Broker, store, logs, whatever user code opens.
_OTHER_FILES: Final = 100


@asynccontextmanager
async def open_gateway(
    models: Mapping[str, ModelConfig],
    environments: Mapping[str, EnvironmentSpec],
    broker: Broker,
    journal: Journal,
    *,
    prefetch: int = 256,
    shared: Shared | None = None,
) -> AsyncIterator[ModelGateway]:
    """A gateway to `models`, and to `scripted/<name>` of each environment that has a policy.

    `shared` is what it has in common with the other gateways of its models; None: there are none.
    """
    common = shared or MemoryShared()
    _warn_of_few_files(models.values(), prefetch)
    async with AsyncExitStack() as stack:
        pools: dict[str, tuple[ModelConfig, EndpointPool]] = {}
        served: dict[str, tuple[ModelConfig, Backend]] = {}
        engines: dict[str, Asks] = {}
        threads = Threads()
        for environment in environments.values():
            if environment.policy is not None:
                name = scripted_name(environment.name)
                served[name] = ModelConfig(name=name), ScriptedBackend(environment, threads)
        for name, config in models.items():
            limits = config.requests_per_minute, config.tokens_per_minute
            allowance = Allowance(common, name, *limits)
            if config.path is not None:
                from workers.model_gateway import vllm_inside

                engines[name] = await stack.enter_async_context(vllm_inside.running(config))
            replicas = endpoints(config, engines.get(name))
            pool = await stack.enter_async_context(EndpointPool.open(replicas, allowance))
            served[name] = pools[name] = config, pool
        await stack.enter_async_context(watching(broker, common, pools, engines))
        spending = Spending(common)
        telling = asyncio.create_task(spending.tell())
        stack.callback(telling.cancel)
        executor = Executor(broker, journal)
        await stack.enter_async_context(executor.open())
        yield ModelGateway(executor, served, prefetch=prefetch, spending=spending)


def _warn_of_few_files(models: Iterable[ModelConfig], prefetch: int) -> None:
    """Each request in flight is an open file; without one it looks as if the endpoint were gone."""
    most = sum(LANE_SHARE.values()) * prefetch
    needed = int(sum(min(model.max_concurrency * len(model.urls), most) for model in models))
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= allowed < needed + _OTHER_FILES:
        log.warning(
            "too few open files for all requests in flight: raise `ulimit -Hn`, or lower the"
            " models' max_concurrency",
            extra={"allowed": allowed, "needed": needed + _OTHER_FILES},
        )


def endpoints(config: ModelConfig, inside: Asks | None = None) -> list[Endpoint]:
    """The replicas of one model, or the engine `inside` this process. Nothing is sent yet."""
    return [
        Endpoint(
            mask_url(url), _backend(config, url, inside), config.max_concurrency, config.secrets
        )
        for url in config.urls
    ]


def _backend(config: ModelConfig, url: str, inside: Asks | None) -> Probed:
    if inside is not None or config.api == "vllm":
        from workers.model_gateway.vllm_backend import VllmBackend

        return VllmBackend(config, url, inside)
    if config.azure is None and config.api in ("auto", "chat") and not is_openai(url):
        from workers.model_gateway.recognised import RecognisedBackend, compatible

        return compatible(config, url) if config.api == "chat" else RecognisedBackend(config, url)
    from workers.model_gateway.openai_backend import OpenAIBackend

    return OpenAIBackend(config, url)


async def check_endpoint(config: ModelConfig, *, timeout_s: float = 10.0) -> None:
    """Ask every endpoint of a model whether it is there and takes our key; costs no tokens.

    A model with a path has none: only whether vLLM is installed is checked.
    Raises Unreachable with the endpoint (masked), what it said, and what to try; UsageError.
    """
    if config.path is not None:
        from workers.model_gateway import vllm_inside

        return vllm_inside.check_installed(config.name)
    for url in config.urls:
        backend = _asked(config, url)
        try:
            await backend.owners(timeout_s)
        except (BackendError, TimeoutError) as e:
            raise Unreachable(_advice(config, mask_url(url), e)) from e
        finally:
            await backend.close()


def _asked(config: ModelConfig, url: str) -> "VllmBackend | OpenAIBackend":
    """What can ask for the list of models, which all servers have."""
    if config.azure is None:
        from workers.model_gateway.vllm_backend import VllmBackend

        return VllmBackend(config, url)
    from workers.model_gateway.openai_backend import OpenAIBackend

    return OpenAIBackend(config, url)


def _advice(config: ModelConfig, url: str, error: Exception) -> str:
    if isinstance(error, Refused | ContextOverflow):
        hint = "check the API key (--api-key-env) and that the base URL ends where /v1 does"
    else:
        hint = "check that the server runs, and --base-url"
    return f"model {config.name!r} at {url}: {error}. Try: {hint}"
