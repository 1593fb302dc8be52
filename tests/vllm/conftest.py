"""A real vLLM on this machine's CPU, for `make test-vllm` only: it runs in a venv of its own.

WARREN_TEST_VLLM names that venv. All tests run against a vLLM server, then against one inside the
gateway: each starts once, which takes a minute on a quiet machine, and one of them runs at a time.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from broker.shared.memory import MemoryShared
from tests.support.gateway import Caller
from tests.support.gateway import serving as gateway_to
from tests.support.real_vllm import ENGINE, ENVIRONMENT, VENV, model_at, python, serving
from workers.model_gateway.config import ModelConfig

collect_ignore_glob = [] if VENV else ["test_*.py"]


@dataclass(frozen=True, slots=True)
class Served:
    """A gateway to a vLLM that serves the tiny model."""

    caller: Caller
    shared: MemoryShared
    weights: Path
    """Folder with the model `tiny`, and versions of it that are noise: `1`, `2`."""


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model and two other versions of its weights; WARREN_TEST_VLLM_WEIGHTS keeps them."""
    kept = os.environ.get("WARREN_TEST_VLLM_WEIGHTS")
    folder = Path(kept) if kept else tmp_path_factory.mktemp("weights")
    script = Path(__file__).with_name("tiny_model.py")
    if not (folder / "2" / "model.safetensors").exists():
        python(script, folder, 1, 2)
    return folder


@pytest_asyncio.fixture(params=["server", "inside"], scope="session", loop_scope="session")
async def served(
    request: pytest.FixtureRequest, weights: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Served]:
    """The gateway that all tests share, to a server, then with the engine inside."""
    shared = MemoryShared()
    with contextlib.ExitStack() as stack:
        if request.param == "server":
            url = stack.enter_context(serving(weights / "tiny", tmp_path_factory.mktemp("engine")))
            model = model_at(url)
        else:
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            for name, value in ENVIRONMENT.items():
                patch.setenv(name, value)
            model = model_at(path=str(weights / "tiny"), engine_args=ENGINE)
        ending = asyncio.Event()
        opened: asyncio.Future[Caller] = asyncio.get_running_loop().create_future()
        holding = asyncio.create_task(_hold(model, shared, opened, ending))
        holding.add_done_callback(lambda _: opened.cancel())
        await asyncio.wait([opened])
        if holding.done():
            await holding  # why it did not open
        yield Served(opened.result(), shared, weights)
        ending.set()
        await holding


async def _hold(
    model: ModelConfig, shared: MemoryShared, opened: "asyncio.Future[Caller]", end: asyncio.Event
) -> None:
    """A context that is open over many tests must be entered and left by one task."""
    async with gateway_to(model, shared=shared) as caller:
        opened.set_result(caller)
        await end.wait()
