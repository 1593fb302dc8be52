"""User code in processes that can be killed: one fork server per environment, one fork per job.

Tool calls and rewards that ask for it run here, and all that ended their worker once before.
"""

import asyncio
import contextlib
import logging
import shutil
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from broker.deadlines import within
from broker.errors import WarrenError
from workers.isolation_server import ANSWER, ASK, LENGTH, READY, Ask, read_frame
from workers.limited import CLEANUP_S

log = logging.getLogger(__name__)

#: The program that runs isolated jobs; it gets the environment's reference and a socket's path.
CHILD: Final = (sys.executable, "-P", "-m", "warren.child")
#: Importing an environment may be slow (a large library), but not this slow.
_START_S: Final = 60.0
#: A child ends itself at the timeout; only one that can't is killed from outside.
_MARGIN_S: Final = CLEANUP_S + 1.0


class CannotIsolate(WarrenError):
    """The environment could not be loaded in a process of its own."""


class ChildDied(Exception):
    """The job's process ended without an answer; the text says how: `killed its process ...`."""


class Isolation:
    """Runs jobs of one environment in processes of their own. Starts with its first job."""

    def __init__(self, reference: str, child: Sequence[str] = CHILD) -> None:
        self._reference = reference
        self._child = child
        self._starting = asyncio.Lock()
        self._process: Process | None = None
        self._folder: Path | None = None

    async def run(
        self, kind: str, body: bytes, timeout_s: float, on_ask: Ask | None = None
    ) -> bytes:
        """The answer to one job; it is killed, with all it started, when the time is over.

        Raises CannotIsolate, ChildDied, TimeoutError, and what `on_ask` raises (in a group).
        """
        try:
            reader, writer = await self._connect()
        except OSError as e:
            raise CannotIsolate(f"no connection to the child process: {e}") from e
        try:
            _write(writer, kind.encode() + b"\0" + body)
            async with asyncio.timeout(timeout_s + _MARGIN_S):
                answer = await _converse(reader, writer, on_ask)
        finally:
            writer.close()  # whatever still runs is killed now
        if answer[:1] == ANSWER:
            return answer[1:]
        raise ChildDied(answer[1:].decode(errors="replace") or "killed its process")

    async def close(self) -> None:
        """End the server; it kills what still runs."""
        process, self._process = self._process, None
        if process is not None:
            await _end(process)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        async with self._starting:
            if self._process is None or self._process.returncode is not None:
                await self.close()
                await self._start()
        return await asyncio.open_unix_connection(self._socket)

    @property
    def _socket(self) -> str:
        return f"{self._folder}/socket"

    async def _start(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="warren-"))
        command = (*self._child, self._reference, self._socket)
        process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE)
        try:
            await _until_ready(process)
        except BaseException:
            await asyncio.shield(_end(process))
            raise
        self._process = process
        log.info("isolating", extra={"environment": self._reference, "pid": process.pid})


async def _until_ready(process: Process) -> None:
    if process.stdout is None:
        raise CannotIsolate("no pipe to the child process")
    try:
        async with asyncio.timeout(_START_S):
            # not to the end: uvloop leaves the child a copy of the pipe that it never closes
            said = await process.stdout.readline()
            if said != READY:
                said += await process.stdout.read()
    except TimeoutError as e:
        raise CannotIsolate(f"not loaded within {_START_S:g} s") from e
    if said != READY:
        raise CannotIsolate(said.decode(errors="replace").strip() or "the child process died")


async def _converse(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, on_ask: Ask | None
) -> bytes:
    """Answer what the job asks, all at once, until its last frame: an answer or how it died."""

    async def reply(number: bytes, body: bytes) -> None:
        if on_ask is None:
            raise ChildDied("asked for something that it can't have")
        _write(writer, number + await on_ask(body))

    async with asyncio.TaskGroup() as group:
        while True:
            try:
                frame = await read_frame(reader)
            except (EOFError, OSError):
                frame = b""
            if frame[:1] != ASK:
                return frame
            group.create_task(reply(frame[1 : 1 + LENGTH.size], frame[1 + LENGTH.size :]))


def _write(writer: asyncio.StreamWriter, frame: bytes) -> None:
    writer.write(LENGTH.pack(len(frame)) + frame)


async def _end(process: Process) -> None:
    """Hang up, then wait; kill it where it doesn't notice."""
    if process.stdin is not None:
        process.stdin.close()
    try:
        with within(5.0):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
