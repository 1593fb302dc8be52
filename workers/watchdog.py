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
#: sysexits.h: internal software error.
EXIT_BLOCKED: Final = 70

_OURS: Final = Path(__file__).resolve().parent.parent
_LIBRARIES: Final = tuple({sysconfig.get_path("stdlib"), sysconfig.get_path("purelib")})


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
) -> Generator[None, None, None]:
    """Guard the running loop while the context is open.

    `on_blocked` is called in another thread, again after every further `limit_s`. `hard` arms
    faulthandler too, of which a process has only one: where that thread can't run, it says where
    all threads are and ends the process with 1.
    """
    guard = _Guard(asyncio.get_running_loop(), limit_s, on_blocked, hard)
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
        hard: bool,
    ) -> None:
        self._loop = loop
        self._limit_s = limit_s
        self._on_blocked = on_blocked
        self._hard = hard
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
        if self._hard:
            faulthandler.cancel_dump_traceback_later()

    def _on_beat(self) -> None:
        self._beaten = True
        if self._hard:  # later than the thread, which can say more
            faulthandler.dump_traceback_later(1.5 * self._limit_s, exit=True)
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
    users = [frame for frame in stack if _is_users(frame.filename)]
    if not stack:
        return "unknown"
    frame = (users or stack)[-1]
    return f"{frame.filename}:{frame.lineno}: {frame.name}"


def _is_users(filename: str) -> bool:
    if filename.startswith("<") or filename.startswith(_LIBRARIES):
        return False
    path = Path(filename)
    if not path.is_relative_to(_OURS):
        return True
    return path.relative_to(_OURS).parts[0] not in {"broker", "workers", "warren", "sinks"}
