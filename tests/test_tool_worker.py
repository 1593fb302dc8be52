"""The tool worker through its queue and the journal: whatever a tool does becomes a result."""

import asyncio
import json
import os
import threading
import time
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import BaseModel

from tests.support.tools import ROLLOUT, tool_bench, until
from warren import Environment, load_environment


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


async def test_a_tool_that_is_too_slow_fails_and_neighbours_go_on(env: Environment) -> None:
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


class Account(BaseModel):
    owner: str
    balance: float = 0.0
    log: list[str] = []


def _bank() -> Environment:
    env = Environment("bank")

    @env.setup
    def open_account(task: dict[str, Any]) -> Account:
        return Account(owner=task["owner"])

    @env.tool
    def deposit(amount: Annotated[float, "euros"], state: Account) -> float:
        state.balance += amount
        return state.balance

    @env.tool
    def forget(state: Account) -> None:
        state.owner = object()  # type: ignore[assignment]

    @env.tool
    def half_done(state: Account) -> None:
        state.balance = -1
        raise ValueError("no")

    @env.tool(effect="pure")
    def balance(state: Account) -> float:
        return state.balance

    @env.tool(effect="pure")
    def lying(state: Account) -> None:
        state.balance += 1

    return env


async def test_state_is_made_changed_and_stored_with_each_call() -> None:
    async with tool_bench(_bank()) as bench:
        assert (await bench.call("", row=b'{"owner": "Ada"}', path="setup")).error is None
        assert (await bench.take()).state_version == 1
        assert (await bench.call("deposit", {"amount": 3})).output == "3.0"
        assert (await bench.call("deposit", {"amount": 4})).output == "7.0"
        assert (await bench.call("balance")).output == "7.0"
        run = await bench.take()
        assert run.state_version == 3
        assert json.loads(run.state) == {"owner": "Ada", "balance": 7.0, "log": []}


@pytest.mark.parametrize(
    ("tool", "said"),
    [
        ("forget", "the state is not what"),
        ("half_done", "ValueError: no"),
        ("lying", "declared pure, but it changed the state"),
    ],
)
async def test_a_tool_that_fails_leaves_the_state_as_it_was(tool: str, said: str) -> None:
    async with tool_bench(_bank()) as bench:
        await bench.call("", row=b'{"owner": "Ada"}', path="setup")
        result = await bench.call(tool)
        assert result.error is not None
        assert said in result.error.message
        run = await bench.take()
        assert run.state_version == 1
        assert json.loads(run.state)["owner"] == "Ada"


async def test_a_setup_that_raises_is_a_recorded_failure() -> None:
    async with tool_bench(_bank()) as bench:
        result = await bench.call("", row=b"{}", path="setup")
        assert result.error is not None
        assert "KeyError: 'owner'" in result.error.message


HOSTILE = """
import ctypes, os, re, subprocess, sys, time
from warren import Environment

env = Environment("hostile")

@env.tool(isolated=True)
def leave() -> str:
    os._exit(0)

@env.tool(isolated=True)
def crash() -> str:
    ctypes.string_at(0)
    return "unreachable"

@env.tool(isolated=True, timeout_s=0.5)
def hold_the_gil() -> str:
    re.match(r"(a+)+$", "a" * 60 + "b")
    return "unreachable"

@env.tool(isolated=True)
def leave_a_process_behind() -> int:
    return subprocess.Popen(["sleep", "300"]).pid

@env.tool(isolated=True)
def where() -> int:
    print("noise on standard output")
    return os.getpid()

@env.tool
def normally_inside() -> int:
    return os.getpid()

@env.tool(isolated=True, effect="at_most_once")
def pay() -> str:
    os._exit(1)

@env.setup
def start() -> dict[str, int]:
    return {"n": 0}

@env.tool(isolated=True)
def count(state: dict[str, int]) -> int:
    state["n"] += 1
    return state["n"]
"""


def _break(environment: Environment) -> None:
    Path(environment.source).write_text("1 / 0", encoding="utf-8")


@pytest.fixture
def hostile(tmp_path: Path) -> Environment:
    (tmp_path / "hostile.py").write_text(HOSTILE, encoding="utf-8")
    return load_environment(str(tmp_path / "hostile.py"))


@pytest.mark.parametrize(
    ("tool", "said"),
    [
        ("leave", "leave ended its process (exit status 0)"),
        ("crash", "crash killed its process (SIGSEGV)"),
        ("hold_the_gil", "hold_the_gil did not finish within 0.5 s"),
    ],
)
async def test_an_isolated_tool_that_dies_is_named_and_harms_nobody(
    hostile: Environment, tool: str, said: str
) -> None:
    async with tool_bench(hostile) as bench:
        result = await bench.call(tool)
        assert result.error is not None
        assert result.error.kind == "tool"
        assert result.error.message == said
        pid = int((await bench.call("where")).output)
        assert pid != os.getpid()
        assert int((await bench.call("normally_inside")).output) == os.getpid()


async def test_an_isolated_tool_leaves_no_process_behind(hostile: Environment) -> None:
    async with tool_bench(hostile) as bench:
        pid = int((await bench.call("leave_a_process_behind")).output)

        async def gone() -> bool:
            return not _runs(pid)

        await until(gone, 10)


def _runs(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0] != "Z"


async def test_an_isolated_call_works_on_the_rollouts_state(hostile: Environment) -> None:
    async with tool_bench(hostile) as bench:
        await bench.call("", path="setup")
        assert (await bench.call("count")).output == "1"
        assert (await bench.call("count")).output == "2"
        assert json.loads((await bench.take()).state) == {"n": 2}


async def test_an_at_most_once_tool_that_dies_is_in_doubt(hostile: Environment) -> None:
    async with tool_bench(hostile) as bench:
        result = await bench.call("pay")
        assert result.in_doubt
        assert "may or may not have happened" in result.output


async def test_a_call_whose_worker_died_runs_in_a_process_of_its_own(hostile: Environment) -> None:
    async with tool_bench(hostile) as bench:
        await bench.begin_elsewhere("0.tool.0", "carrier")
        result = await bench.call("normally_inside", path="0.tool.0", carrier="carrier")
        assert int(result.output) != os.getpid()


async def test_the_fork_server_is_started_again_when_it_died(hostile: Environment) -> None:
    async with tool_bench(hostile) as bench:
        await bench.call("where")
        isolation = bench.worker._isolations["hostile"]
        server = isolation._process
        assert server is not None
        server.kill()
        await server.wait()
        assert (await bench.call("where")).error is None


async def test_an_environment_that_no_longer_loads_says_so(hostile: Environment) -> None:
    _break(hostile)
    async with tool_bench(hostile) as bench:
        result = await bench.call("where")
        assert result.error is not None
        assert result.error.kind == "infra"
        assert "hostile.py:1: ZeroDivisionError" in result.error.message


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
