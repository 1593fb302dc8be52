"""A blocked event loop is noticed, named and ended; a busy one is left alone."""

import asyncio
import subprocess
import sys
import time

from workers.watchdog import EXIT_BLOCKED, Blockage, watch_loop

PROGRAM = """
import asyncio, logging, re, sys, time
from workers.watchdog import watch_loop

logging.basicConfig(format="%(levelname)s %(culprit)s", level="CRITICAL")

def user_code_that_sleeps():
    time.sleep(20)

def user_code_that_holds_the_lock():
    re.match(r"(a+)+$", "a" * 60 + "b")

async def main():
    with watch_loop(0.3):
        await asyncio.sleep(0)
        globals()[sys.argv[1]]()

asyncio.run(main())
"""


def run(function: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM, function]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def test_a_function_that_blocks_the_loop_is_named_and_the_process_ends() -> None:
    ended = run("user_code_that_sleeps")
    assert ended.returncode == EXIT_BLOCKED
    assert "CRITICAL" in ended.stderr


def test_code_that_holds_the_interpreters_lock_is_ended_too() -> None:
    ended = run("user_code_that_holds_the_lock")
    assert ended.returncode == 1
    assert "in user_code_that_holds_the_lock" in ended.stderr


async def test_the_innermost_function_of_the_user_is_named() -> None:
    ended: list[Blockage] = []

    def my_tool() -> None:
        deadline = time.monotonic() + 10
        while not ended and time.monotonic() < deadline:
            time.sleep(0.01)

    with watch_loop(0.2, on_blocked=ended.append, hard=False):
        await asyncio.sleep(0)
        my_tool()
    (blockage,) = ended
    assert blockage.culprit.endswith(": my_tool")
    assert "test_watchdog.py" in blockage.stack


async def test_a_loop_that_is_only_busy_is_left_alone() -> None:
    ended: list[Blockage] = []
    with watch_loop(0.2, on_blocked=ended.append, hard=False):
        for _ in range(100):
            _work()
            await asyncio.sleep(0)
    assert ended == []


def _work() -> None:
    time.sleep(0.01)
