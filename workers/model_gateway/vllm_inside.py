"""vLLM in the gateway's own process, for GPUs that the gateway's machine shares with a trainer.

The engine (AsyncLLM) is ours, and so is vLLM's own application around it: chat template, tool and
reasoning parsers, token endpoints, weights. It is asked without a network, in the words of a vLLM
server, so all that holds for one holds here; nobody else can reach it, which is why the endpoints
that change weights are always there. Needs the `vllm` extra.
"""

import asyncio
import contextlib
import functools
import importlib.util
import multiprocessing
import subprocess
from collections.abc import AsyncIterator, Sequence
from types import SimpleNamespace
from typing import Any, Final, NoReturn

from broker.errors import Unreachable, UsageError
from workers.model_gateway.asgi import App, AppClient
from workers.model_gateway.config import ModelConfig

INSTALL: Final = "pip install 'warren[vllm]'"
#: What Warren relies on. Ours come first: the user's arguments win.
_ALWAYS: Final = (
    *("--generation-config", "vllm", "--scheduling-policy", "priority"),
    *("--enable-scale-out", "--enable-prompt-tokens-details"),
)


def check_installed(model: str) -> None:
    """Raises UsageError where vLLM is not installed, with what to do."""
    if importlib.util.find_spec("vllm") is None:
        raise UsageError(
            f"model {model!r} has a path, so it runs in this process, which needs vLLM:"
            f" {INSTALL}; or give it base_urls, where a vLLM serves it"
        )


@contextlib.asynccontextmanager
async def running(config: ModelConfig) -> AsyncIterator[AppClient]:
    """The engine of `config.path`, while the context is open. Loading takes as long as vLLM does;
    it happens in a thread, so that the broker's connection lives meanwhile.

    Raises UsageError (not installed, wrong arguments), Unreachable (vLLM did not start).
    """
    check_installed(config.name)
    arguments = await asyncio.to_thread(_arguments, config)
    engine = await asyncio.to_thread(_engine, config, arguments)
    watching = undertaker()
    try:
        client = AppClient(await _application(engine, arguments, lora=config.lora))
        try:
            yield client
        finally:
            await client.close()
    finally:
        watching.kill()
        watching.communicate()
        await asyncio.to_thread(engine.shutdown)


def words(config: ModelConfig) -> list[str]:
    """The arguments of the `vllm serve` that this stands for."""
    given = config.engine_args
    named = {word.partition("=")[0].replace("_", "-") for word in given}
    parsing = "--tool-call-parser" in named and "--enable-auto-tool-choice" not in named
    return [
        *("--model", config.path or ""),
        *("--served-model-name", config.served_name or config.name),
        *_ALWAYS,
        *(("--enable-auto-tool-choice",) if parsing else ()),
        *given,
    ]


def _arguments(config: ModelConfig) -> Any:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    cli_env_setup()  # workers are spawned: this process has threads
    parser = make_arg_parser(FlexibleArgumentParser())
    parser.error = functools.partial(_refuse, config.name)
    arguments = parser.parse_args(words(config))
    arguments.api_key = [""]  # none: nobody else can ask
    try:
        validate_parsed_serve_args(arguments)
    except (TypeError, ValueError) as e:
        _refuse(config.name, str(e))
    return arguments


def _refuse(model: str, why: str) -> NoReturn:
    raise UsageError(f"engine_args of model {model!r}: {why}")


def _engine(config: ModelConfig, arguments: Any) -> Any:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    try:
        return AsyncLLM.from_engine_args(AsyncEngineArgs.from_cli_args(arguments))
    except (OSError, RuntimeError, ValueError) as e:
        text = f"model {config.name!r}: vLLM did not start with {config.path!r}: {e}"
        raise Unreachable(f"{text}. Its own log above says more") from e


def undertaker() -> "subprocess.Popen[bytes]":
    """Ends the engine's process when this one is killed: vLLM's would live on, with the GPU.

    It reads a pipe that only we hold, so it learns of our end however that came.
    """
    children = multiprocessing.active_children()
    pids = [str(child.pid) for child in children if child.name.startswith("EngineCore")]
    return subprocess.Popen(
        ["/bin/sh", "-c", 'read _; kill -9 "$@"', "sh", *pids],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


async def _application(engine: Any, arguments: Any, *, lora: bool) -> App:
    """What `vllm serve` would serve, its development endpoints included."""
    from vllm import envs
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    from vllm.entrypoints.launchers.app import build_app

    tasks: Sequence[str] = await engine.get_supported_tasks()
    app = build_app(arguments, tasks, engine.model_config)
    if lora and not envs.VLLM_ALLOW_RUNTIME_LORA_UPDATING:
        from vllm.entrypoints.serve.lora.api_router import _attach_router

        _attach_router(app)
    if not envs.VLLM_SERVER_DEV_MODE:
        from vllm.entrypoints.rl.factories import register_rl_api_routers
        from vllm.entrypoints.serve import register_vllm_dev_api_routers

        register_vllm_dev_api_routers(app)
        register_rl_api_routers(app)
    await init_app_state(engine, app.state, arguments, tasks)
    app.state.server = SimpleNamespace(should_exit=False)  # vLLM tells it when the engine died
    built: App = app
    return built
