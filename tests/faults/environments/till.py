"""As `lookup`, but a process of the rollout's own counts; it can't be stored, only kept."""

import asyncio
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator

from warren import Environment, Rollout

env = Environment("till")


@env.session
async def counter() -> AsyncIterator[Process]:
    """A child that says back what it is told. It ends with its standard input."""
    process = await asyncio.create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE)
    yield process
    process.kill()
    await process.wait()


async def told(process: Process, line: str) -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{line}\n".encode())
    return (await process.stdout.readline()).decode().strip()


@env.tool
async def look_up(session: Process, number: int) -> str:
    """Seven times the number."""
    await asyncio.sleep(0.2)
    return await told(session, str(number * 7))


@env.reward
async def correct(rollout: Rollout, session: Process) -> float:
    """Never 0, so that a 0 is a bug."""
    number = int(rollout.task["number"])
    assert await told(session, "still there") == "still there"
    assert rollout.answer == str(number * 7), rollout.answer
    return 0.25 + (number % 4) / 4 * 0.75
