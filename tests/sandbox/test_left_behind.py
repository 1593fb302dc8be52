"""Nothing of a sandboxed program stays behind, and sandboxes do not meet."""

import asyncio
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import sandboxes
from tests.support.sandboxes import text
from workers.sandbox import Limits, run_code

SHORT = Limits(wall_s=5.0)


async def test_daemons_die_with_their_program() -> None:
    code = """
import os
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for fd in (0, 1, 2): os.close(fd)
        os.execv('/bin/sleep', ['sleep', '98761.5'])
    os._exit(0)
os.wait()
"""
    result = await run_code(code, limits=SHORT)
    assert result.ok
    assert sandboxes.processes_with("98761.5") == []


async def test_cancellation_kills_and_cleans() -> None:
    task = asyncio.create_task(run_code(["/bin/sleep", "98762.5"]))
    await sandboxes.eventually(lambda: _sleeps("98762.5"))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sandboxes.processes_with("98762.5") == []


@pytest.mark.parametrize("after_ms", [0, 1, 2, 4, 8, 16, 32])
async def test_cancellation_at_any_moment_of_the_start_cleans(after_ms: int) -> None:
    marker = f"98763.{after_ms}5"
    task = asyncio.create_task(run_code(["/bin/sleep", marker]))
    await asyncio.sleep(after_ms / 1000)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sandboxes.processes_with(marker) == []


@pytest.fixture
def sleeping_worker() -> Iterator["subprocess.Popen[bytes]"]:
    """A process of ours that waits for a sandboxed `sleep 98764.5`."""
    code = (
        "import asyncio; from workers.sandbox import run_code;"
        "asyncio.run(run_code(['/bin/sleep', '98764.5']))"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=sandboxes.REPOSITORY) as worker:
        yield worker
        worker.kill()


async def test_a_dead_worker_takes_its_sandboxes_along(
    sleeping_worker: "subprocess.Popen[bytes]",
) -> None:
    await sandboxes.eventually(lambda: _sleeps("98764.5"))
    sleeping_worker.kill()
    sleeping_worker.wait()
    await sandboxes.eventually(lambda: not sandboxes.processes_with("98764.5"))


def _sleeps(marker: str) -> bool:
    """Whether the program itself has started, not only the commands that lead to it."""
    return any(_name(pid) == "sleep\n" for pid in sandboxes.processes_with(marker))


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text("utf-8")
    except OSError:
        return ""


async def test_twenty_runs_at_once_stay_apart() -> None:
    code = """
import os, sys, time
children = []
for _ in range(3):
    child = os.fork()
    if child == 0:
        time.sleep(0.3); os._exit(0)
    children.append(child)
for child in children: os.waitpid(child, 0)
print(sys.stdin.read(), os.getuid())
"""
    limits = Limits(wall_s=60, processes=4)  # a shared count would refuse most of them
    async with asyncio.TaskGroup() as group:
        runs = [
            group.create_task(run_code(code, stdin=str(n).encode(), limits=limits))
            for n in range(20)
        ]
    answers = [text(run.result()).split() for run in runs]
    assert [int(answer[0]) for answer in answers] == list(range(20))
    if os.geteuid() == 0:
        assert len({answer[1] for answer in answers}) == 20


async def test_a_start_is_quick() -> None:
    times = [(await run_code("pass")).seconds for _ in range(15)]
    assert statistics.median(times) < 0.25  # 0.03 on an idle machine, but tests share theirs
