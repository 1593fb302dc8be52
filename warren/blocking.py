"""User code that blocks the event loop of a command: who it was, and what its author can do.

Workers only log it (workers/watchdog.py); somebody looks at a command and shall read a sentence.
"""

import os
import sys
from collections.abc import Callable

from workers.watchdog import EXIT_BLOCKED, Blockage


def in_words(blockage: Blockage) -> str:
    """Names the place and says what to write instead."""
    return (
        f"{blockage.culprit} blocked the event loop for {blockage.seconds:g} s: nothing else could "
        "run. Await in an `async def`, never block or loop long in it; a plain `def` runs in a "
        "thread; isolated=True (tools, rewards) gives it a process that is killed at its timeout_s"
    )


def ending(then: str) -> Callable[[Blockage], None]:
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
