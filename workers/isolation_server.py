"""The process that isolated user code runs under: loads the environment once, then forks per job.

One connection is one job. The parent sends it and reads one answer; in between the job may ask the
parent for things (a judge). If the parent hangs up, or dies, the job's whole process group is
killed. A child that dies without an answer is answered for. The server itself is single-threaded
and free of asyncio, so that forking is safe.

Framing: 4 bytes big-endian length, then the frame. The parent's first frame is a job: its kind, a
NUL, its body. Afterwards frames from here begin with a tag (ANSWER, ASK, DIED); asks and their
answers carry a number of 4 bytes, since a job may ask for several things at once.
"""

import asyncio
import contextlib
import itertools
import os
import select
import signal
import socket
import struct
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, NoReturn

LENGTH: Final = struct.Struct(">I")
ANSWER: Final = b"="
ASK: Final = b"?"
DIED: Final = b"!"
#: Written to the parent once jobs can come.
READY: Final = b"ready\n"
#: A parent that has connected sends its job at once.
_READ_S: Final = 10.0

Ask = Callable[[bytes], Awaitable[bytes]]
"""Asks the parent for something, from inside a job."""
Handler = Callable[[bytes, Ask], Awaitable[bytes]]
"""Does one kind of job: its body in, its answer out."""
Watching = Callable[[], contextlib.AbstractContextManager[object]]
"""Guards the event loop of a job's process."""


class ForkServer:
    """Serves isolated jobs until the parent hangs up."""

    def __init__(
        self, handlers: Mapping[str, Handler], listener: socket.socket, watching: Watching
    ) -> None:
        self._handlers = handlers
        self._watching = watching
        self._listener = listener
        self._poll = select.poll()
        self._connections: dict[int, socket.socket] = {}
        """By process id, which is its group's too."""
        self._pids: dict[int, int] = {}
        """By the connection's file descriptor."""

    def serve(self, parent_fd: int) -> None:
        """Run until `parent_fd` reaches its end: the parent has closed it, or died."""
        died = _on_child_exit()
        listening = self._listener.fileno()
        for fd in (parent_fd, listening, died):
            self._poll.register(fd, select.POLLIN)
        while True:
            for fd, _ in self._poll.poll():
                if fd == parent_fd and not os.read(parent_fd, 1):
                    return self._kill_all()
                if fd == listening:
                    self._accept()
                elif fd == died:
                    os.read(died, 4096)
                    self._reap()
                elif fd in self._pids:  # nobody waits for this job any more
                    self._poll.unregister(fd)
                    _kill(self._pids.pop(fd))

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        try:
            connection.settimeout(_READ_S)
            kind, _, body = receive(connection).partition(b"\0")
        except (OSError, EOFError):
            return connection.close()
        pid = os.fork()
        if pid == 0:
            self._child(connection, self._handlers[kind.decode()], body)
        with contextlib.suppress(OSError):  # the child does it too; whoever is first
            os.setpgid(pid, pid)
        self._connections[pid] = connection
        self._pids[connection.fileno()] = pid
        self._poll.register(connection, select.POLLRDHUP)  # what is sent on it is the child's

    def _child(self, connection: socket.socket, handler: Handler, body: bytes) -> NoReturn:
        try:
            os.setpgid(0, 0)
            self._let_go()
            asyncio.run(self._watched(connection, handler, body))
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)  # nothing of the server's may run here

    async def _watched(self, connection: socket.socket, handler: Handler, body: bytes) -> None:
        with self._watching():
            await _work(connection, handler, body)

    def _let_go(self) -> None:
        """What the server holds is none of a child's business."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        self._listener.close()
        for connection in self._connections.values():
            connection.close()
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)

    def _reap(self) -> None:
        for pid in list(self._connections):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                _kill(pid)  # what it has left behind
                self._answer_for(self._connections.pop(pid), status)

    def _answer_for(self, connection: socket.socket, status: int) -> None:
        """Comes after the child's own answer, if there was one, and is then not read."""
        if self._pids.pop(connection.fileno(), None) is not None:
            self._poll.unregister(connection)
        with contextlib.suppress(OSError), connection:
            connection.setblocking(False)
            send(connection, DIED + _manner(status).encode())

    def _kill_all(self) -> None:
        for pid in self._connections:
            _kill(pid)


def main(
    handlers: Mapping[str, Handler],
    path: str,
    ready_fd: int,
    watching: Watching = contextlib.nullcontext,
) -> None:
    """Serve on a Unix socket at `path`; standard input is the life line to the parent.

    Each job runs in a `watching()`.
    """
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(128)
        os.write(ready_fd, READY)
        os.close(ready_fd)
        ForkServer(handlers, listener, watching).serve(0)


class _Line:
    """A job's line to the parent: many asks at once, then one answer."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        writer.transport.set_write_buffer_limits(0)  # `drain` returns when all is sent
        self._numbers = itertools.count()
        self._asked: dict[int, asyncio.Future[bytes]] = {}

    async def ask(self, body: bytes) -> bytes:
        number = next(self._numbers)
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._asked[number] = future
        await self.say(ASK + LENGTH.pack(number) + body)
        return await future

    async def say(self, frame: bytes) -> None:
        self._writer.write(LENGTH.pack(len(frame)) + frame)
        await self._writer.drain()

    async def listen(self) -> None:
        """Take what the parent answers; when it hangs up this process is killed."""
        while True:
            frame = await read_frame(self._reader)
            number = int.from_bytes(frame[: LENGTH.size], "big")
            self._asked.pop(number).set_result(frame[LENGTH.size :])


async def _work(connection: socket.socket, handler: Handler, body: bytes) -> None:
    connection.setblocking(False)
    line = _Line(*await asyncio.open_unix_connection(sock=connection))
    listening = asyncio.create_task(line.listen())
    await line.say(ANSWER + await handler(body, line.ask))
    listening.cancel()


async def read_frame(reader: asyncio.StreamReader) -> bytes:
    """One frame. Raises EOFError where the other side ended first."""
    (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
    body: bytes = await reader.readexactly(length)
    return body


def send(connection: socket.socket, body: bytes) -> None:
    """One frame."""
    connection.sendall(LENGTH.pack(len(body)) + body)


def receive(connection: socket.socket) -> bytes:
    """One frame. Raises EOFError where the other side ended first."""
    (length,) = LENGTH.unpack(_exactly(connection, LENGTH.size))
    return _exactly(connection, length)


def _exactly(connection: socket.socket, count: int) -> bytes:
    parts = []
    while count:
        part = connection.recv(min(count, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def _on_child_exit() -> int:
    """A file descriptor that becomes readable when a child has ended. SIGINT is the parent's."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return reader


def _kill(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def _manner(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        return f"killed its process ({signal.Signals(-code).name})"
    return f"ended its process (exit status {code})"
