"""Run a program that nobody trusts: `run_code`.

Promises: the program sees none of our files, variables, processes or networks; it gets no more than
its limits; when the call returns, or is cancelled, no process, file or descriptor of it is left.
All its files live in memory of its own mount namespace and go with it.
"""

import asyncio
import fcntl
import io
import json
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Final, Literal

from workers.sandbox import bubblewrap, seccomp
from workers.sandbox.host import Host, host
from workers.sandbox.limits import DEFAULT_LIMITS, KilledBy, Limits, SandboxError, SandboxResult
from workers.sandbox.process import Capture, Child, readable, uninterrupted
from workers.sandbox.uids import reserved_uid
from workers.sandbox.usage import read_usage, shared_once_bytes

Language = Literal["python", "shell"]

#: Between two looks at memory and processor time: what a program grows by meanwhile is overshoot.
_WATCH_S: Final = 0.05
#: A kill takes effect in milliseconds; a process stuck in the kernel for longer is a sick machine.
_END_S: Final = 10.0
#: Until bwrap has told the pid of the sandbox's first process, killing it could orphan that one.
_BIRTH_S: Final = 3.0
#: Each is a descriptor while the sandbox starts.
_MAX_FILES: Final = 200
_KILLED: Final = 128 + signal.SIGKILL


async def run_code(
    code_or_argv: str | Sequence[str],
    *,
    language: Language = "python",
    files: Mapping[str, bytes] | None = None,
    stdin: bytes = b"",
    limits: Limits = DEFAULT_LIMITS,
    handles: Sequence[io.FileIO] = (),
) -> SandboxResult:
    """Run source code, or a command line, in a fresh sandbox whose directory holds `files`.

    `handles` are pipes that the program gets under their descriptor's number; they are closed here.
    Raises SandboxUnavailable where no sandbox can be had, SandboxError when it failed, ValueError
    for file names that lead elsewhere. Whatever the program does is in the result.
    """
    found = host()
    program, files = program_of(code_or_argv, language, files or {}, found.python)
    with reserved_uid(found.uids) as uid:
        with ExitStack() as given:
            pipes = [given.enter_context(handle).fileno() for handle in handles]
            box = _start(
                given,
                found,
                program,
                files=files,
                stdin=stdin,
                limits=limits,
                uid=uid,
                inherited=pipes,
            )
        started = time.monotonic()
        try:
            killed_by = await _supervise(box, limits, started + limits.wall_s)
        finally:
            await uninterrupted(box.end())
    return box.result(killed_by, time.monotonic() - started)


def program_of(
    code_or_argv: str | Sequence[str], language: Language, files: Mapping[str, bytes], python: str
) -> tuple[list[str], dict[str, bytes]]:
    """The command line, and the files that it needs beside it. Raises ValueError."""
    checked = {bubblewrap.checked_name(name): data for name, data in files.items()}
    if not isinstance(code_or_argv, str):
        program = list(code_or_argv)
    elif language == "python":
        # -s and -E: nothing of a user's home; -B: no bytecode files
        program = [python, "-sEB", "main.py"]
        checked["main.py"] = code_or_argv.encode("utf-8", "surrogatepass")
    else:
        program = ["/bin/sh", "main.sh"]
        checked["main.sh"] = code_or_argv.encode("utf-8", "surrogatepass")
    if not program or any("\0" in word for word in program):
        raise ValueError("a command line must have words, and no NUL in them")
    if len(checked) > _MAX_FILES:
        raise ValueError(f"{len(checked)} files are too many for a sandbox (at most {_MAX_FILES})")
    return program, checked


class _Box:
    """A started sandbox."""

    def __init__(self, child: Child, status: Capture) -> None:
        self.child = child
        self._status = status

    @property
    def first_pid(self) -> int | None:
        """The sandbox's pid 1 as we see it; None until bwrap has said it."""
        return self._said("child-pid")

    def result(self, killed_by: KilledBy | None, seconds: float) -> SandboxResult:
        """Call after `end`. Raises SandboxError if the program never ran."""
        child, truncated = self.child, self.child.output.overflown
        if truncated and killed_by is None:
            killed_by = "output"  # it ended before we looked; the answer must not depend on that
        exit_code = self._said("exit-code")
        if exit_code is None and killed_by is None:
            why = child.output.data(1)[-500:].decode(errors="replace").strip()
            raise SandboxError(f"the sandbox ended with code {child.exit_code}: {why}")
        return SandboxResult(
            exit_code=_KILLED if killed_by or exit_code is None else exit_code,
            stdout=child.output.data(0),
            stderr=child.output.data(1),
            truncated=truncated,
            killed_by=killed_by,
            seconds=seconds,
        )

    async def end(self) -> None:
        """Kill what still runs, and wait until every process of the sandbox is gone."""
        try:
            await self._born()
            with _pidfd(self.first_pid) as first:
                if self.child.exit_code is None:
                    self._kill(first)
                await self.child.ended(_END_S)
                if first is not None:
                    # it ends last, when all others are gone: that is what pid 1 means
                    await readable(first, _END_S)
        except TimeoutError as error:
            raise SandboxError(f"a killed sandbox (pid {self.child.pid}) doesn't end") from error
        finally:
            self.child.close()
            self._status.close()
            self._reap_first()

    async def _born(self) -> None:
        deadline = time.monotonic() + _BIRTH_S
        while self.child.exit_code is None and self.first_pid is None:
            if time.monotonic() > deadline:
                return
            await asyncio.sleep(0.005)

    def _kill(self, first: int | None) -> None:
        """The first process takes all others with it, and bwrap then ends by itself."""
        if first is None:
            self.child.kill()
            return
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(first, signal.SIGKILL)

    def _reap_first(self) -> None:
        """If bwrap ended before its child and we are a container's pid 1, the zombie is ours."""
        pid = self.first_pid
        if pid is not None:
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)

    def _said(self, key: str) -> int | None:
        for line in self._status.data(0).split(b"\n"):
            with suppress(ValueError):
                value = json.loads(line).get(key)
                if isinstance(value, int):
                    return value
        return None


def _start(
    given: ExitStack,
    found: Host,
    program: Sequence[str],
    *,
    files: Mapping[str, bytes],
    stdin: bytes,
    limits: Limits,
    uid: int | None,
    inherited: Sequence[int],
) -> _Box:
    """Start bwrap; the descriptors that only it needs are put on the stack `given`."""
    copies = {name: given.enter_context(memory_file(data)) for name, data in files.items()}
    filter_fd = given.enter_context(memory_file(seccomp.program()))
    status, status_end = os.pipe()
    given.callback(os.close, status_end)
    argv = bubblewrap.command(
        found,
        program,
        limits=limits,
        files=copies,
        seccomp_fd=filter_fd,
        status_fd=status_end,
        uid=uid,
    )
    try:
        child = Child(
            argv,
            stdin=given.enter_context(memory_file(stdin)),
            inherited=[*copies.values(), filter_fd, status_end, *inherited],
            environment={},  # bwrap's own is readable from inside
            output_bytes=limits.output_bytes,
        )
    except BaseException:
        os.close(status)
        raise
    return _Box(child, Capture([status], 64 * 1024, full=lambda: None))


async def _supervise(box: _Box, limits: Limits, deadline: float) -> KilledBy | None:
    """Wait for the program's end; or for the first limit that it passes."""
    while True:
        left_s = deadline - time.monotonic()
        if await box.child.ended_or_full(max(0.0, min(_WATCH_S, left_s))):
            return "output" if box.child.output.overflown else None
        if left_s <= 0:
            return "timeout"
        if box.first_pid is not None and (passed := _passed(box.first_pid, limits)):
            return passed


def _passed(first_pid: int, limits: Limits) -> KilledBy | None:
    usage = read_usage(first_pid)
    if usage is None:
        return None
    if usage.cpu_s > limits.cpu_s:
        return "cpu"
    if len(usage.pids) > limits.processes + 1:
        return "processes"
    if usage.files > limits.files:
        return "files"
    if usage.sockets > limits.sockets:
        return "sockets"
    too_much = usage.memory_bytes > limits.memory_bytes
    if too_much and shared_once_bytes(first_pid, usage) > limits.memory_bytes:
        return "memory"
    return None


@contextmanager
def memory_file(data: bytes) -> Iterator[int]:
    """An unnamed file that can be read from its start, and by nobody changed."""
    fd = os.memfd_create("warren", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(data)
        os.lseek(fd, 0, os.SEEK_SET)
        seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _pidfd(pid: int | None) -> Iterator[int | None]:
    """None when there is no such process any more."""
    try:
        fd = None if pid is None else os.pidfd_open(pid)
    except ProcessLookupError:
        fd = None
    try:
        yield fd
    finally:
        if fd is not None:
            os.close(fd)
