"""The process that isolated calls run under: loads the environment once, then forks per call.

One connection is one call. The parent sends a job and reads one answer; if it hangs up before, or
dies, the call's whole process group is killed. A child that dies without an answer is answered for.
Single-threaded and free of asyncio, so that forking is safe.

Framing: 4 bytes big-endian length, then a packed Job or Performed.
"""

import asyncio
import contextlib
import os
import selectors
import signal
import socket
import struct
import sys
from dataclasses import dataclass, field
from typing import Final, NoReturn

from broker import codec
from workers.spec import EnvironmentSpec
from workers.tool.running import Job, Performed, broken_off, perform

LENGTH: Final = struct.Struct(">I")
#: Written to the parent once calls can come.
READY: Final = b"ready\n"
#: A parent that has connected sends its job at once.
_READ_S: Final = 10.0


@dataclass(slots=True)
class _Call:
    connection: socket.socket
    job: Job


@dataclass(slots=True)
class ForkServer:
    """Serves isolated calls of one environment until the parent hangs up."""

    spec: EnvironmentSpec
    listener: socket.socket
    _calls: dict[int, _Call] = field(default_factory=dict)
    """By process id, which is its group's too."""
    _selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)

    def serve(self, parent_fd: int) -> None:
        """Run until `parent_fd` reaches its end: the parent has closed it, or died."""
        died = _on_child_exit()
        self._selector.register(parent_fd, selectors.EVENT_READ, "parent")
        self._selector.register(self.listener, selectors.EVENT_READ, "listener")
        self._selector.register(died, selectors.EVENT_READ, "died")
        while True:
            for key, _ in self._selector.select():
                match key.data:
                    case "parent" if not os.read(parent_fd, 1):
                        return self._kill_all()
                    case "listener":
                        self._accept()
                    case "died":
                        os.read(died, 4096)
                        self._reap()
                    case int() as pid:
                        self._hung_up(pid)

    def _accept(self) -> None:
        connection, _ = self.listener.accept()
        try:
            connection.settimeout(_READ_S)
            job = codec.read(Job, receive(connection))
        except (OSError, EOFError):
            return connection.close()
        pid = os.fork()
        if pid == 0:
            self._child(connection, job)
        with contextlib.suppress(OSError):  # the child does it too; whoever is first
            os.setpgid(pid, pid)
        self._calls[pid] = _Call(connection, job)
        self._selector.register(connection, selectors.EVENT_READ, pid)

    def _child(self, connection: socket.socket, job: Job) -> NoReturn:
        try:
            os.setpgid(0, 0)
            self._let_go()
            performed = asyncio.run(perform(self.spec, job))
            send(connection, codec.pack(performed))
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)  # nothing of the server's may run here

    def _let_go(self) -> None:
        """What the server holds is none of a child's business."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        self._selector.close()
        self.listener.close()
        for call in self._calls.values():
            call.connection.close()
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)

    def _hung_up(self, pid: int) -> None:
        """Nobody waits for this call any more (the parent sends nothing after its job)."""
        call = self._calls.get(pid)
        if call is not None:
            self._selector.unregister(call.connection)
            _kill(pid)

    def _reap(self) -> None:
        for pid in list(self._calls):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                _kill(pid)  # what it has left behind
                self._answer_for(self._calls.pop(pid), status)

    def _answer_for(self, call: _Call, status: int) -> None:
        """Comes after the child's own answer, if there was one, and is then not read."""
        with contextlib.suppress(KeyError):
            self._selector.unregister(call.connection)
        name = call.job.tool or "setup"
        result = broken_off(self.spec.tools.get(name), f"{name} {_manner(status)}", where=name)
        with contextlib.suppress(OSError), call.connection:
            call.connection.setblocking(False)
            send(call.connection, codec.pack(Performed(result=result)))

    def _kill_all(self) -> None:
        for pid in self._calls:
            _kill(pid)


def main(spec: EnvironmentSpec, path: str, ready_fd: int) -> None:
    """Serve on a Unix socket at `path`; standard input is the life line to the parent."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(128)
        os.write(ready_fd, READY)
        os.close(ready_fd)
        ForkServer(spec, listener).serve(0)


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
