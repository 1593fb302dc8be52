"""Notices that user code blocks the event loop, says which, and ends the process.

A blocked loop serves nobody: no reply, no heartbeat, no stop. The broker gives the process's
deliveries to others, and a call that blocked its worker runs in a process of its own next time.

What is done about it is for the caller to say; without a word it is logged and the process ends.
Two guards: a thread that names the author's function, and, for code that never lets go of the
interpreter's lock (a regular expression that backtracks for ever), faulthandler's C thread.
"""

import asyncio
import faulthandler
import logging
import os
import sys
import sysconfig
import threading
import traceback
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

log = logging.getLogger(__name__)

#: Longer than any honest step on the loop, far shorter than a heartbeat's end (60 s).
LIMIT_S: Final = 30.0
#: The thread looks this often per limit. It counts its looks, not seconds, so that a process that
#: was itself stopped (SIGSTOP, a sleeping laptop) is not taken for a blocked one.
_LOOKS: Final = 10
#: faulthandler waits so much longer than the thread, which can say more.
HARD: Final = 1.5
#: sysexits.h: internal software error.
EXIT_BLOCKED: Final = 70

_OURS: Final = Path(__file__).resolve().parent.parent
_LIBRARIES: Final = tuple({sysconfig.get_path(p) for p in ("stdlib", "purelib", "scripts")})


@dataclass(frozen=True, slots=True)
class Blockage:
    """What blocks the loop."""

    seconds: float
    culprit: str
    """`file:line: function`."""
    stack: str


def end_process(blockage: Blockage) -> None:
    """Log it and end with EXIT_BLOCKED."""
    log.critical(
        "the event loop is blocked: ending the process",
        extra={
            "blocked_s": blockage.seconds,
            "culprit": blockage.culprit,
            "stack": blockage.stack,
        },
    )
    for handler in logging.getLogger().handlers:
        handler.flush()
    os._exit(EXIT_BLOCKED)


@contextmanager
def watch_loop(
    limit_s: float = LIMIT_S,
    *,
    on_blocked: Callable[[Blockage], object] = end_process,
    hard: bool = True,
    dump_to: int = 2,
) -> Generator[None, None, None]:
    """Guard the running loop while the context is open.

    `on_blocked` is called in another thread, again after every further `limit_s`. `hard` arms
    faulthandler too, of which a process has only one: where that thread can't run, it ends the
    process with 1 after HARD times the limit, and writes where all threads are to the descriptor
    `dump_to`.
    """
    guard = _Guard(asyncio.get_running_loop(), limit_s, on_blocked, dump_to if hard else None)
    guard.start()
    try:
        yield
    finally:
        guard.stop()


class _Guard:
    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        limit_s: float,
        on_blocked: Callable[[Blockage], object],
        dump_to: int | None,
    ) -> None:
        self._loop = loop
        self._limit_s = limit_s
        self._on_blocked = on_blocked
        self._dump_to = dump_to
        self._loop_thread = threading.get_ident()
        self._beaten = True
        self._stopped = threading.Event()
        self._beat: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self._on_beat()
        threading.Thread(target=self._look, name="warren-watchdog", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()
        if self._beat is not None:
            self._beat.cancel()
        if self._dump_to is not None:
            faulthandler.cancel_dump_traceback_later()

    def _on_beat(self) -> None:
        self._beaten = True
        if self._dump_to is not None:
            later_s = HARD * self._limit_s
            faulthandler.dump_traceback_later(later_s, exit=True, file=self._dump_to)
        self._beat = self._loop.call_later(self._limit_s / _LOOKS, self._on_beat)

    def _look(self) -> None:
        silent = 0
        while not self._stopped.wait(self._limit_s / _LOOKS):
            silent = 0 if self._beaten else silent + 1
            self._beaten = False
            if silent >= _LOOKS:
                self._blocked()
                silent = 0

    def _blocked(self) -> None:
        frame = sys._current_frames().get(self._loop_thread)
        stack = traceback.extract_stack(frame) if frame is not None else []
        told = "".join(traceback.format_list(stack[-12:]))
        self._on_blocked(Blockage(self._limit_s, culprit(stack), told))


def culprit(stack: Sequence[traceback.FrameSummary]) -> str:
    """`file:line: function` of the innermost frame that is the user's, else of the innermost."""
    users = [frame for frame in stack if is_users(frame.filename)]
    if not stack:
        return "unknown"
    frame = (users or stack)[-1]
    return f"{frame.filename}:{frame.lineno}: {frame.name}"


def is_users(filename: str) -> bool:
    """Whether the file is an environment's: neither ours nor a library."""
    if filename.startswith("<") or filename.startswith(_LIBRARIES):
        return False
    path = Path(filename)
    if not path.is_relative_to(_OURS):
        return True
    return path.relative_to(_OURS).parts[0] not in {"broker", "workers", "warren", "sinks"}
