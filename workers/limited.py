"""Awaits user code for a limited time: it can neither end the loop nor outstay its cancellation."""

import asyncio
import inspect
import traceback
from collections.abc import Awaitable
from typing import Any, Final, TypeVar

T = TypeVar("T")

#: What a cancelled async function may still take to clean up before it counts as lost.
CLEANUP_S: Final = 1.0
#: Lines of a traceback that are kept.
_TRACEBACK_LINES: Final = 8


class Overdue(Exception):
    """A function did not end within its time."""

    def __init__(self, *, ended: bool) -> None:
        super().__init__()
        self.ended = ended
        """Whether it at least let itself be cancelled."""


async def within(timeout_s: float, work: Awaitable[Any]) -> Any:
    """Await user code for so long; what it returns or raises. Raises Overdue.

    Whatever it raises that is no Exception (SystemExit, KeyboardInterrupt) becomes a RuntimeError.
    """
    task = asyncio.get_running_loop().create_task(without_exit(work))
    try:
        if not await _ends(task, timeout_s):
            task.cancel()
            raise Overdue(ended=await _ends(task, CLEANUP_S))
    finally:
        if task.done():
            _forget(task, work)
        else:
            task.cancel()
            task.add_done_callback(lambda ended: _forget(ended, work))
    if task.cancelled():
        raise RuntimeError("it cancelled itself")
    try:
        return task.result()
    except Exception:
        raise
    except BaseException as e:
        raise RuntimeError(f"it raised {described(e)}") from e


async def _ends(task: asyncio.Task[Any], timeout_s: float) -> bool:
    """Whether it ends in time. (`asyncio.wait` for one task: a third of its cost.)"""
    loop = asyncio.get_running_loop()
    over: asyncio.Future[None] = loop.create_future()

    def wake(_: object = None) -> None:
        if not over.done():
            over.set_result(None)

    timer = loop.call_later(timeout_s, wake)
    task.add_done_callback(wake)
    try:
        await over
    finally:
        timer.cancel()
        task.remove_done_callback(wake)
    return task.done()


async def without_exit(work: Awaitable[T]) -> T:
    """Await user code in a task of its own: there these two would end the loop itself.

    Ctrl-C is not among them: commands and workers are told of it by their signal handlers.
    """
    try:
        return await work
    except SystemExit as e:
        raise RuntimeError(f"it called sys.exit({e.code!r})") from e
    except KeyboardInterrupt as e:
        raise RuntimeError("it raised KeyboardInterrupt") from e


def described(error: BaseException) -> str:
    """`ValueError: what it says`, whatever an author's exception does when it is asked."""
    try:
        text = str(error)
    except Exception:  # `__str__` is user code too
        text = "(its text can't be read)"
    return f"{type(error).__name__}: {text}".encode(errors="replace").decode()


def _forget(task: asyncio.Future[Any], work: Awaitable[Any]) -> None:
    """Nobody reads what comes after the timeout."""
    if not task.cancelled():
        task.exception()
    elif inspect.iscoroutine(work):  # cancelled before it began: Python would warn of it
        work.close()


def last_lines(error: BaseException) -> str:
    """The end of its traceback: where in the author's code it happened."""
    lines = "".join(traceback.format_exception(error)).rstrip().split("\n")
    return "\n".join(lines[-_TRACEBACK_LINES:])
