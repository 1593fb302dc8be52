"""Isolated tools: code that takes its process along is named and harms nobody."""

import json
import os
from pathlib import Path

import pytest

from tests.support.tools import tool_bench, until
from warren import Environment, load_environment

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
