"""Run a program without any confinement, for `--unsafe-no-sandbox` on a machine of one's own.

Keeps time and output limits; everything else is open to the program, and what it starts in a
session of its own outlives it.
"""

import io
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

from workers.sandbox.limits import DEFAULT_LIMITS, KilledBy, Limits, SandboxResult
from workers.sandbox.process import Child, uninterrupted
from workers.sandbox.run import Language, memory_file, program_of

log = logging.getLogger(__name__)

_END_S: Final = 10.0


async def run_unsafe(
    code_or_argv: str | Sequence[str],
    *,
    language: Language = "python",
    files: Mapping[str, bytes] | None = None,
    stdin: bytes = b"",
    limits: Limits = DEFAULT_LIMITS,
    handles: Sequence[io.FileIO] = (),
) -> SandboxResult:
    """Like `run_code`, and as dangerous as the code. Logs a warning each time."""
    log.warning("running untrusted code WITHOUT A SANDBOX", extra={"action": "unsafe_run"})
    program, files = program_of(code_or_argv, language, files or {}, sys.executable)
    with (
        tempfile.TemporaryDirectory(prefix="warren-unsafe-", ignore_cleanup_errors=True) as work,
        ExitStack() as given,
    ):
        _write(Path(work), files)
        pipes = [given.enter_context(handle).fileno() for handle in handles]
        child = Child(
            program,
            stdin=given.enter_context(memory_file(stdin)),
            inherited=pipes,
            environment={"PATH": os.defpath, "HOME": work, "LANG": "C.UTF-8"},
            cwd=work,
            output_bytes=limits.output_bytes,
        )
        given.close()
        started = time.monotonic()
        try:
            ended = await child.ended_or_full(limits.wall_s)
        finally:
            await uninterrupted(_end(child))
    return _result(child, ended, time.monotonic() - started)


def _write(work: Path, files: Mapping[str, bytes]) -> None:
    for name, data in files.items():
        path = work / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


async def _end(child: Child) -> None:
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    try:
        await child.ended(_END_S)
    finally:
        child.close()


def _result(child: Child, ended: bool, seconds: float) -> SandboxResult:
    killed_by: KilledBy | None = None if ended else "timeout"
    if child.output.overflown:
        killed_by = "output"
    code = child.exit_code or 0
    return SandboxResult(
        exit_code=128 - code if code < 0 else code,
        stdout=child.output.data(0),
        stderr=child.output.data(1),
        truncated=child.output.overflown,
        killed_by=killed_by,
        seconds=seconds,
    )
