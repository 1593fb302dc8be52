"""A running child: its output, its end, and the certainty that nothing of it is left.

Works on descriptors and pidfds instead of asyncio's subprocesses: those need a thread or a signal
handler per child, and wait for pipes that a descendant may keep open.
"""

import asyncio
import os
import subprocess
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

_CHUNK_BYTES: Final = 64 * 1024


class Capture:
    """What some pipes carry, kept up to a number of bytes that they share; more is dropped.

    Owns the descriptors.
    """

    def __init__(self, fds: Sequence[int], limit_bytes: int, full: Callable[[], None]) -> None:
        self.overflown = False
        self._left = limit_bytes
        self._kept = [bytearray() for _ in fds]
        self._fds = list(fds)
        self._full = full
        self._loop = asyncio.get_running_loop()
        for index, fd in enumerate(fds):
            os.set_blocking(fd, False)
            self._loop.add_reader(fd, self._read, index)

    def data(self, index: int) -> bytes:
        """What came through this pipe so far."""
        return bytes(self._kept[index])

    def close(self) -> None:
        """Take what is still in the pipes, which is all of it once nobody can write any more."""
        for index, fd in enumerate(self._fds):
            while not self.overflown and self._read(index):
                pass
            self._loop.remove_reader(fd)
            os.close(fd)

    def _read(self, index: int) -> bool:
        try:
            data = os.read(self._fds[index], _CHUNK_BYTES)
        except BlockingIOError:
            return False
        kept = data[: self._left]
        self._left -= len(kept)
        self._kept[index] += kept
        if len(kept) < len(data):
            self.overflown = True
            self._full()
        if not data:
            self._loop.remove_reader(self._fds[index])
        return bool(data)


class Child:
    """A child process in a session of its own, its output captured. `close` it once it ended."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        stdin: int,
        inherited: Sequence[int] = (),
        environment: Mapping[str, str],
        cwd: str = "/",
        output_bytes: int,
    ) -> None:
        pipes = [os.pipe(), os.pipe()]
        try:
            for _, end in pipes:
                os.fchmod(end, 0o666)  # so that another uid can open /dev/stderr
            self._process = subprocess.Popen(
                argv,
                stdin=stdin,
                stdout=pipes[0][1],
                stderr=pipes[1][1],
                pass_fds=inherited,
                env=environment,
                cwd=cwd,
                start_new_session=True,
            )
        except BaseException:
            for read_end, _ in pipes:
                os.close(read_end)
            raise
        finally:
            for _, end in pipes:
                os.close(end)
        self.pid = self._process.pid
        self.exit_code: int | None = None
        """Negative: the signal that ended it. None while it runs."""
        self._changed = asyncio.Event()
        self.output = Capture([end for end, _ in pipes], output_bytes, self._changed.set)
        """Pipe 0 is its standard output, 1 its standard error."""
        self._loop = asyncio.get_running_loop()
        self._pidfd = os.pidfd_open(self.pid)
        self._loop.add_reader(self._pidfd, self._reap)

    async def ended_or_full(self, timeout_s: float) -> bool:
        """Wait until it ended or wrote too much; False when neither happened in time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        return self._changed.is_set()

    async def ended(self, timeout_s: float) -> None:
        """Wait for its end. Raises TimeoutError."""
        if self.exit_code is None:
            await readable(self._pidfd, timeout_s)
            self._reap()

    def kill(self) -> None:
        """The child itself, not what it started."""
        if self.exit_code is None:
            self._process.kill()

    def close(self) -> None:
        """Give back the descriptors; the rest of the output is read first."""
        self.output.close()
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)

    def _reap(self) -> None:
        self._loop.remove_reader(self._pidfd)
        self.exit_code = self._process.wait()
        self._changed.set()


async def readable(fd: int, timeout_s: float) -> None:
    """Wait until a descriptor can be read; a pidfd can be when its process has ended."""
    loop = asyncio.get_running_loop()
    event = asyncio.Event()
    loop.add_reader(fd, event.set)
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    finally:
        loop.remove_reader(fd)


async def uninterrupted(work: Coroutine[Any, Any, None]) -> None:
    """Run short clean-up to its end even if we are cancelled; then be cancelled."""
    task = asyncio.create_task(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    task.result()
    if cancelled is not None:
        raise cancelled
