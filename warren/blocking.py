"""User code that blocks the event loop of a command: who it was, and what its author can do.

Somebody looks at a command and shall read a sentence. Workers log it (workers/watchdog.py), as long
as they can: code that holds the interpreter's lock is told of in words for them too.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Final

from workers.watchdog import EXIT_BLOCKED, HARD, Blockage, watch_loop

_SHELL: Final = "/bin/sh"
#: Waits for the first line of a dump, which hardly ever comes: a shell, since that costs nothing.
_WAIT: Final = 'trap "" INT TERM; IFS= read -r line && exec "$0" "$@"'

ISOLATED: Final = (
    "isolated=True (tools, rewards) gives it a process that is killed at its timeout_s"
)


@contextmanager
def watching(
    limit_s: float, then: str, on_blocked: Callable[[Blockage], object] | None = None
) -> Generator[None, None, None]:
    """Guard the running loop of a command (watch_loop); `then` is what comes of it or what its
    user can do.

    Code that holds the interpreter's lock lets nobody in this process say so: a process beside it
    (warren/locked.py) reads where it stood, and says it.
    """
    with (
        _told_beside(limit_s * HARD, then) as writing,
        watch_loop(limit_s, on_blocked=on_blocked or _ending(then), dump_to=writing),
    ):
        yield


@contextmanager
def _told_beside(seconds: float, then: str) -> Generator[int, None, None]:
    """Where to write a dump that is to be said in words; stderr where no process can be had."""
    reading, writing = os.pipe()
    words = [sys.executable, "-m", "warren.locked", f"{seconds:g}", then]
    try:
        beside = subprocess.Popen([_SHELL, "-c", _WAIT, *words], stdin=reading, stdout=2)
    except OSError:  # an image without a shell
        os.close(writing)
        yield 2
        return
    finally:
        os.close(reading)
    try:
        yield writing
    finally:
        os.close(writing)
        beside.kill()
        beside.wait()


def in_words(blockage: Blockage) -> str:
    """Names the place and says what to write instead."""
    return (
        f"{blockage.culprit} blocked the event loop for {blockage.seconds:g} s: nothing else could "
        "run. Await in an `async def`, never block or loop long in it; a plain `def` runs in a "
        f"thread; {ISOLATED}"
    )


def _ending(then: str) -> Callable[[Blockage], None]:
    """For watch_loop: say it, and `then`, on stderr, and end the process."""

    def end(blockage: Blockage) -> None:
        sys.stderr.write(f"warren: {in_words(blockage)}\nwarren: {then}\n{blockage.stack}")
        sys.stderr.flush()
        os._exit(EXIT_BLOCKED)

    return end


def warning(blockage: Blockage) -> None:
    """For watch_loop in a process of one call, which may take all its time: say only where."""
    sys.stderr.write(
        f"warren: {blockage.culprit} has blocked its own process for {blockage.seconds:g} s; "
        "it is killed when its timeout_s is over\n"
    )
    sys.stderr.flush()
