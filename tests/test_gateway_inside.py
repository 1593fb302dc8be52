"""Engines inside gateways: asked without a network, each brought to the model's version."""

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from broker.memory import MemoryBroker
from broker.shared.base import PolicyUpdateFailed
from broker.shared.memory import MemoryShared
from producers.policy import update_policy
from tests.support import vllm_server
from tests.support.command import until, warren
from tests.support.vllm_server import FakeVllm
from workers.model_gateway.asgi import AppClient
from workers.model_gateway.backend import Retryable
from workers.model_gateway.config import ModelConfig
from workers.model_gateway.http import MAX_ANSWER_BYTES
from workers.model_gateway.http_client import HttpClient
from workers.model_gateway.opening import endpoints
from workers.model_gateway.policy_watch import watching
from workers.model_gateway.pool import EndpointPool
from workers.model_gateway.vllm_inside import words

CONFIG = ModelConfig(name="m", path="/weights/base")


def application(body: bytes = b"{}", **seen: Any) -> Callable[..., Any]:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen["scope"], seen["request"] = scope, await receive()
        await send({"type": "http.response.start", "status": 201, "headers": [(b"X-A", b"b")]})
        await send({"type": "http.response.body", "body": body[:1], "more_body": True})
        await send({"type": "http.response.body", "body": body[1:]})

    app.seen = seen  # type: ignore[attr-defined]
    return app


async def test_an_application_gets_the_request_and_its_whole_answer_comes_back() -> None:
    app: Any = application(b"answer")
    client = AppClient(app)
    answer = await client.request("POST", "/pause?mode=keep", b"question")
    await client.close()
    assert (answer.status, answer.headers["x-a"], answer.body) == (201, "b", b"answer")
    scope = app.seen["scope"]
    assert (scope["path"], scope["query_string"]) == ("/pause", b"mode=keep")
    assert app.seen["request"]["body"] == b"question"


async def test_an_application_that_breaks_is_a_broken_connection_and_no_answer_is_endless() -> None:
    async def breaks(*_: Any) -> None:
        raise KeyError("engine")

    async def is_silent(*_: Any) -> None:
        """Ends without an answer."""

    for app, why in ((breaks, "KeyError"), (is_silent, "no answer")):
        client = AppClient(app)
        with pytest.raises(ConnectionError, match=why):
            await client.request("GET", "/")
    huge = AppClient(application(b"x" * (MAX_ANSWER_BYTES + 1)))
    with pytest.raises(Retryable, match="larger"):
        await huge.request("GET", "/")


async def test_who_is_cancelled_disconnects_and_the_application_may_end_its_work() -> None:
    messages: list[str] = []
    reading = asyncio.Event()

    async def app(_: Any, receive: Any, send: Any) -> None:
        await receive()
        reading.set()
        messages.append((await receive())["type"])

    client = AppClient(app)
    request = asyncio.create_task(client.request("POST", "/", b"{}"))
    await reading.wait()
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    await client.close()
    assert messages == ["http.disconnect"]


@contextlib.asynccontextmanager
async def gateway(
    engine: FakeVllm, broker: MemoryBroker, shared: MemoryShared
) -> AsyncIterator[EndpointPool]:
    """A gateway's pool and watch, with this engine inside."""
    client = HttpClient(engine.url)
    async with (
        EndpointPool.open(endpoints(CONFIG, client)) as pool,
        watching(broker, shared, {"m": (CONFIG, pool)}, {"m": client}),
    ):
        yield pool


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_each_gateway_loads_into_its_own_engine_a_late_one_before_its_first_call() -> None:
    broker, shared = MemoryBroker(), MemoryShared()
    async with (
        vllm_server.running() as a,
        vllm_server.running() as b,
        vllm_server.running() as late,
        gateway(a, broker, shared) as first,
        gateway(b, broker, shared) as second,
    ):
        await eventually(lambda: not (first.paused or second.paused))
        await update_policy(broker, shared, "m", 1, "/weights/1")
        await eventually(lambda: not (first.paused or second.paused))
        assert a.loads == b.loads == ["/weights/1"]
        async with gateway(late, broker, shared) as third:
            assert third.paused, "it does not know yet which version the model has"
            await eventually(lambda: not third.paused)
            assert (late.loads, late.version) == (["/weights/1"], "1")
    await broker.close()


async def test_an_engine_that_cannot_load_what_others_have_samples_nothing_until_it_can() -> None:
    broker, shared = MemoryBroker(), MemoryShared()
    async with vllm_server.running() as a, vllm_server.running(refuses_weights=True) as bad:
        async with gateway(a, broker, shared):
            await update_policy(broker, shared, "m", 1, "1")
        async with gateway(bad, broker, shared) as pool:
            await eventually(lambda: "no such directory" in pool._paused)
            assert pool.paused
            bad.refuses_weights = False
            await eventually(lambda: not pool.paused)
        assert bad.loads == ["1"]
        with pytest.raises(PolicyUpdateFailed, match="no gateway"):
            await update_policy(broker, shared, "m", 2, "2", taken_within_s=0.3)
    await broker.close()


def test_the_words_for_vllm_are_what_warren_relies_on_then_the_users() -> None:
    config = ModelConfig(
        name="m", path="/w", served_name="tiny", engine_args=("--tool-call-parser=hermes",)
    )
    said = words(config)
    assert said[:4] == ["--model", "/w", "--served-model-name", "tiny"]
    assert said[-1] == "--tool-call-parser=hermes"
    assert "--enable-auto-tool-choice" in said
    assert "--enable-auto-tool-choice" not in words(CONFIG)


def test_without_vllm_a_model_with_a_path_says_what_to_install(tmp_path: Path) -> None:
    task = {"id": "t", "input": "What is 1 + 1?", "expected": "2"}
    (tmp_path / "tasks.jsonl").write_text(json.dumps(task), encoding="utf-8")
    words = ("collect", "tasks.jsonl", "--env", "math", "--output", "rows.jsonl")
    done = warren(*words, "--model", "m", "--model-path", "/w", cwd=tmp_path)
    assert done.code == 2, done.err
    assert "pip install 'warren[vllm]'" in done.err


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ('path = "/w"\nbase_urls = ["http://127.0.0.1:1/v1"]', "in one place only"),
        ('path = "/w"\napi = "chat"', "its api is vllm"),
        ('engine_args = "--dtype float32"', "no path"),
        ('path = "/w"\nengine_args = "--dtype \'"', "words as on a command line"),
    ],
)
def test_a_model_is_in_one_place(tmp_path: Path, table: str, says: str) -> None:
    (tmp_path / "warren.toml").write_text(f"[models.m]\n{table}\n", encoding="utf-8")
    done = warren("worker", "model", "--model", "m", cwd=tmp_path)
    assert done.code == 2
    assert says in done.err


ENGINE = """
import multiprocessing, time
from workers.model_gateway.vllm_inside import undertaker

engine = multiprocessing.get_context("fork").Process(
    target=time.sleep, args=(600,), name="EngineCore_DP0"
)
engine.start()
watching = undertaker()
print(engine.pid, flush=True)
time.sleep(600)
"""


def test_an_engine_does_not_outlive_a_gateway_that_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", ENGINE], stdout=subprocess.PIPE) as gateway:
        assert gateway.stdout is not None
        engine = int(gateway.stdout.readline())
        assert not has_ended(engine)
        gateway.kill()
        until(lambda: has_ended(engine))


def has_ended(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"
