"""The worker's side of isolated calls: one fork server per environment, one connection per call."""

import asyncio
import contextlib
import dataclasses
import logging
import shutil
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from broker import codec
from broker.errors import WarrenError
from broker.messages import Failure, ToolResult
from workers.spec import EnvironmentSpec
from workers.tool.forkserver import LENGTH, READY
from workers.tool.running import CLEANUP_S, Job, Performed, broken_off, overdue

log = logging.getLogger(__name__)

#: The program that serves isolated calls; it gets the environment's reference and a socket's path.
CHILD: Final = (sys.executable, "-P", "-m", "warren.child")
#: Importing an environment may be slow (a large library), but not this slow.
_START_S: Final = 60.0
#: A child ends itself at the timeout; only one that can't is killed from outside.
_MARGIN_S: Final = CLEANUP_S + 1.0


class CannotIsolate(WarrenError):
    """The environment could not be loaded in a process of its own."""


class Isolation:
    """Runs calls of one environment in processes that can be killed. Starts with its first call."""

    def __init__(self, spec: EnvironmentSpec, child: Sequence[str] = CHILD) -> None:
        self._spec = spec
        self._child = child
        self._starting = asyncio.Lock()
        self._process: Process | None = None
        self._folder: Path | None = None

    async def perform(self, job: Job) -> Performed:
        """Run one job in a process of its own; killed with all it started when time is over."""
        try:
            reader, writer = await self._connect()
        except (CannotIsolate, OSError) as e:
            failure = Failure(kind="infra", message=f"cannot isolate {job.tool or 'setup'}: {e}")
            return Performed(result=ToolResult(output="Error: not available", error=failure))
        tool = self._spec.tools.get(job.tool)
        try:
            async with asyncio.timeout(job.timeout_s + _MARGIN_S):
                performed = await _exchange(reader, writer, job)
                return dataclasses.replace(performed, lost=False)  # it died with its process
        except TimeoutError:
            return overdue(tool, job)
        except (EOFError, OSError):
            name = job.tool or "setup"
            return Performed(result=broken_off(tool, f"{name} killed its process", where=name))
        finally:
            writer.close()  # whatever still runs is killed now

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
        command = (*self._child, self._spec.reference, self._socket)
        process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE)
        try:
            await _until_ready(process)
        except BaseException:
            await asyncio.shield(_end(process))
            raise
        self._process = process
        log.info("isolating calls", extra={"environment": self._spec.name, "pid": process.pid})


async def _until_ready(process: Process) -> None:
    if process.stdout is None:
        raise CannotIsolate("no pipe to the child process")
    try:
        async with asyncio.timeout(_START_S):
            said = await process.stdout.read()  # to its end: it closes the pipe once it is ready
    except TimeoutError as e:
        raise CannotIsolate(f"not loaded within {_START_S:g} s") from e
    if said != READY:
        raise CannotIsolate(said.decode(errors="replace").strip() or "the child process died")


async def _exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, job: Job
) -> Performed:
    body = codec.pack(job)
    writer.write(LENGTH.pack(len(body)) + body)
    await writer.drain()
    (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
    return codec.read(Performed, await reader.readexactly(length))


async def _end(process: Process) -> None:
    """Hang up, then wait; kill it where it doesn't notice."""
    if process.stdin is not None:
        process.stdin.close()
    try:
        async with asyncio.timeout(5.0):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
