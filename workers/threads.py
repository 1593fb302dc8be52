"""Threads for the user's synchronous functions, so that none of them blocks the event loop.

A thread cannot be killed. One whose caller has given up (a timeout) is *lost*: it is counted until
its function returns, and since all are daemons it never keeps a process alive. A thread whose
function has returned takes the next call; one that is lost takes none, so that lost ones are never
waited for. Prefetch bounds their number.
"""

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Final

from workers.limited import described

#: Threads that wait for the next call; what more there are end.
_MAX_IDLE: Final = 64


@dataclass(slots=True)
class _Job:
    function: Callable[[], Any]
    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[Any]
    context: contextvars.Context
    finished: bool = False
    lost: bool = False


class Threads:
    """Runs functions in threads and knows the lost ones. Bound to no event loop."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lost = 0
        self._idle: list[SimpleQueue[_Job]] = []

    @property
    def lost(self) -> int:
        """How many functions are still running though nobody waits for them any more."""
        return self._lost

    async def run(self, function: Callable[[], Any]) -> Any:
        """Call `function` in a thread; what it returns or raises.

        When the caller is cancelled the thread runs on, lost, and its result is dropped.
        """
        loop = asyncio.get_running_loop()
        job = _Job(function, loop, loop.create_future(), contextvars.copy_context())
        self._begin(job)
        try:
            return await job.done
        except asyncio.CancelledError:
            self._lose(job)
            raise

    def _lose(self, job: _Job) -> None:
        with self._lock:
            if not job.finished:
                job.lost = True
                self._lost += 1

    def _begin(self, job: _Job) -> None:
        try:
            jobs = self._idle.pop()
        except IndexError:
            jobs = SimpleQueue()
            threading.Thread(
                target=self._serve, args=(jobs,), name="warren-user-code", daemon=True
            ).start()
        jobs.put(job)

    def _serve(self, jobs: "SimpleQueue[_Job]") -> None:
        while True:
            job = jobs.get()
            result, error = _call(job)
            with self._lock:
                job.finished = True
                self._lost -= job.lost
            stays = len(self._idle) < _MAX_IDLE
            if stays:  # before anybody hears of the result, and calls again
                self._idle.append(jobs)
            with contextlib.suppress(RuntimeError):  # the loop has closed: nobody is waiting
                job.loop.call_soon_threadsafe(_settle, job, result, error)
            if not stays:
                return
            del job, result, error


def _call(job: _Job) -> tuple[Any, BaseException | None]:
    try:
        return job.context.run(job.function), None
    except BaseException as e:  # whatever user code raises, SystemExit too, is its caller's
        return None, e


def _settle(job: _Job, result: Any, error: BaseException | None) -> None:
    if job.done.done():
        return
    if error is None:
        job.done.set_result(result)
    elif isinstance(error, Exception) and not isinstance(error, StopIteration):
        job.done.set_exception(error)
    else:  # a future takes no StopIteration, and SystemExit would end the loop
        wrapped = RuntimeError(f"raised {described(error)}")
        job.done.set_exception(wrapped.with_traceback(error.__traceback__))
