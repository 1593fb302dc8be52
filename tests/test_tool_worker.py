"""The tool worker through its queue and the journal: whatever a tool does becomes a result."""

import asyncio
import json
import threading
import time
from typing import Any

import pytest
from pydantic import BaseModel

from tests.support.tools import ROLLOUT, tool_bench, until
from warren import Environment


@pytest.fixture
def env() -> Environment:
    return Environment("bench")


async def test_text_goes_to_the_model_as_it_is_and_the_rest_as_json(env: Environment) -> None:
    class Point(BaseModel):
        x: int

    @env.tool
    def say() -> str:
        return "plain"

    @env.tool
    async def point(x: int) -> Point:
        return Point(x=x)

    async with tool_bench(env) as bench:
        assert (await bench.call("say", "")).output == "plain"
        result = await bench.call("point", {"x": 4})
        assert json.loads(result.output) == {"x": 4}
        assert result.error is None
        assert result.seconds > 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("{not json", "not JSON"),
        ("[1]", "must be a JSON object"),
        ("[" * 5000, "not JSON"),
        ('{"x": "many"}', "x: Input should be a valid integer"),
        ('{"y": 1}', "x: Field required; y: Extra inputs are not permitted"),
        ('{"x": NaN}', "not JSON"),
    ],
)
async def test_bad_arguments_are_told_to_the_model_and_are_no_failure(
    env: Environment, arguments: str, said: str
) -> None:
    @env.tool
    async def double(x: int) -> int:
        return 2 * x

    async with tool_bench(env) as bench:
        result = await bench.call("double", arguments)
        assert said in result.output
        assert result.error is None


async def test_an_unknown_tool_is_told_with_the_nearest_name(env: Environment) -> None:
    @env.tool
    async def get_weather(city: str) -> str:
        return city

    async with tool_bench(env) as bench:
        result = await bench.call("get_wether", {})
        assert "no tool 'get_wether'. Did you mean 'get_weather'?" in result.output
        assert result.error is None


async def test_what_a_tool_raises_is_told_and_recorded_with_its_line(env: Environment) -> None:
    @env.tool
    def broken() -> str:
        raise KeyError("no such thing")

    async with tool_bench(env) as bench:
        result = await bench.call("broken")
        assert result.output == "Error: KeyError: 'no such thing'"
        assert result.error is not None
        assert result.error.kind == "tool"
        assert "test_tool_worker.py" in result.error.where


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_sys_exit_in_a_tool_ends_the_call_and_nothing_else(
    env: Environment, kind: str
) -> None:
    @env.tool(name="async")
    async def leave() -> str:
        raise SystemExit(3)

    @env.tool(name="sync")
    def leave_too() -> str:
        raise SystemExit(3)

    async with tool_bench(env) as bench:
        result = await bench.call(kind)
        assert result.error is not None
        assert "sys.exit" in result.error.message or "SystemExit" in result.error.message


class Mute(Exception):
    """Even asking what it says raises."""

    def __str__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize("error", [KeyboardInterrupt, GeneratorExit, BaseException, Mute])
async def test_whatever_a_tool_raises_ends_its_call_and_nothing_else(
    env: Environment, error: type[BaseException]
) -> None:
    @env.tool(name="async")
    async def on_the_loop() -> str:
        raise error

    @env.tool(name="sync")
    def in_a_thread() -> str:
        raise error

    async with tool_bench(env) as bench:
        for kind in ("async", "sync"):
            result = await bench.call(kind)
            assert result.error is not None
            assert error.__name__ in result.error.message


async def test_a_long_output_is_cut_and_flagged(env: Environment) -> None:
    @env.tool(max_output_bytes=200)
    async def talk() -> str:
        return "é" * 1000

    async with tool_bench(env) as bench:
        result = await bench.call("talk")
        assert result.truncated
        assert len(result.output.encode()) <= 200
        assert result.output.endswith("[output cut here: it is longer than 200 bytes]")


async def test_a_result_without_a_json_form_is_the_tools_failure(env: Environment) -> None:
    @env.tool
    async def odd() -> object:
        return object()

    async with tool_bench(env) as bench:
        result = await bench.call("odd")
        assert result.error is not None
        assert "has no JSON form" in result.error.message


async def test_a_tool_that_is_too_slow_fails_and_neighbours_go_on(
    env: Environment, caplog: pytest.LogCaptureFixture
) -> None:
    release = threading.Event()

    @env.tool(timeout_s=0.1)
    def stuck() -> None:
        release.wait(30)

    @env.tool(timeout_s=0.1)
    async def sleepy() -> None:
        await asyncio.Event().wait()

    @env.tool
    async def quick() -> str:
        return "here"

    async with tool_bench(env, max_lost=2) as bench:
        for name in ("stuck", "sleepy"):
            result = await bench.call(name)
            assert result.error is not None
            assert result.error.message == f"{name} did not finish within 0.1 s"
        assert bench.worker.losses.count == 1
        assert not bench.worker.losses.unhealthy.is_set()
        await bench.call("stuck")
        assert bench.worker.losses.unhealthy.is_set()
        assert (await bench.call("quick")).output == "here"
        told = [vars(r)["function"] for r in caplog.records if "never returned" in r.message]
        assert told == ["stuck", "stuck"]
        release.set()

        async def none_lost() -> bool:
            return bench.worker.losses.count == 0

        await until(none_lost, 5)


async def test_calls_run_at_the_same_time(env: Environment) -> None:
    both = threading.Barrier(2, timeout=10)

    @env.tool
    def meet() -> str:
        both.wait()
        return "met"

    async with tool_bench(env) as bench, asyncio.TaskGroup() as group:
        calls = [group.create_task(bench.call("meet")) for _ in range(2)]
    assert [call.result().output for call in calls] == ["met", "met"]


async def test_a_call_gets_its_task_and_a_key_that_every_try_shares(env: Environment) -> None:
    keys = []

    @env.tool
    def who(task: dict[str, Any], idempotency_key: str) -> str:
        keys.append(idempotency_key)
        return str(task["name"])

    assert env.spec().tools["who"].needs_task
    async with tool_bench(env) as bench:
        result = await bench.call("who", row=b'{"name": "Ada"}', path="1.tool.0")
        assert result.output == "Ada"
        await bench.publish("who", path="1.tool.0")
        await bench.call("who", row=b'{"name": "Ben"}', path="1.tool.1")
        assert keys == [f"{ROLLOUT}/{bench.epoch}/1.tool.{i}" for i in range(2)]


async def test_an_at_most_once_tool_is_never_run_again(env: Environment) -> None:
    sent = []

    @env.tool(effect="at_most_once")
    def send(text: str) -> str:
        sent.append(text)
        return "sent"

    async with tool_bench(env) as bench:
        await bench.begin_elsewhere("0.tool.0", "carrier")
        result = await bench.call("send", {"text": "a"}, path="0.tool.0", carrier="carrier")
        assert result.in_doubt
        assert "may or may not have happened" in result.output
        assert sent == []
        assert (await bench.call("send", {"text": "b"})).output == "sent"


async def test_a_call_that_is_overdue_before_it_starts_is_dropped(env: Environment) -> None:
    ran = []

    @env.tool
    def act() -> None:
        ran.append(1)

    async with tool_bench(env) as bench:
        await bench.publish("act", path="late", deadline=time.time() - 1)
        await bench.call("act")
        assert ran == [1]
        assert "late" not in (await bench.take()).results


async def test_a_call_that_killed_its_worker_is_not_tried_for_ever(env: Environment) -> None:
    @env.tool
    def fine() -> str:
        return "ran"

    async with tool_bench(env) as bench:
        for _ in range(2):
            await bench.begin_elsewhere("0.tool.0", "carrier")
        assert (await bench.call("fine", path="0.tool.0", carrier="carrier")).output == "ran"
        for _ in range(3):
            await bench.begin_elsewhere("1.tool.0", "carrier")
        result = await bench.call("fine", path="1.tool.0", carrier="carrier")
        assert result.error is not None
        assert "killed its worker 3 times" in result.error.message
