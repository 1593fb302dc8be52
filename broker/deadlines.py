"""Time limits of code that rarely reaches them: many deadlines on one timer of the event loop.

`asyncio.timeout` makes a timer and cancels it, each time. Here one timer waits for the earliest
deadline; a block that ends in time is only forgotten, which is four times as cheap.
"""

import asyncio
import math
from types import TracebackType


class Deadlines:
    """The deadlines of one owner, on the event loop that it runs on."""

    def __init__(self) -> None:
        self._open: set[Deadline] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._rings_at = math.inf
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """Kept: to ask for the running loop is a system call."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        return self._loop

    def within(self, seconds: float) -> "Deadline":
        """`with deadlines.within(5.0):` raises TimeoutError as `asyncio.timeout` does."""
        return Deadline(self, self.loop.time() + seconds)

    def enter(self, deadline: "Deadline") -> None:
        """From now on it may expire."""
        self._open.add(deadline)
        if deadline.at < self._rings_at:
            self._ring_at(deadline.at)

    def leave(self, deadline: "Deadline") -> None:
        """It can't expire any more. The timer stays: the next deadline is later, as a rule."""
        self._open.discard(deadline)

    def cut(self, deadline: "Deadline") -> None:
        """End its block now, before its time; nothing where the block is over."""
        if deadline in self._open:
            self._open.discard(deadline)
            deadline.expire()

    def _ring_at(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._rings_at = at
        self._timer = self.loop.call_at(at, self._ring)

    def _ring(self) -> None:
        # timers of uvloop go off up to half a millisecond early: what was waited for is due
        due = max(self._rings_at, self.loop.time())
        self._timer, self._rings_at = None, math.inf
        for deadline in [d for d in self._open if d.at <= due]:
            self._open.discard(deadline)
            deadline.expire()
        if (next_at := min((d.at for d in self._open), default=math.inf)) < math.inf:
            self._ring_at(next_at)


def within(seconds: float) -> "Deadline":
    """`with within(1.0):` also where the task may be being cancelled, as in what ends things.

    There `asyncio.timeout` of the first releases of Python 3.11 (Debian's 3.11.2) raises
    CancelledError, not TimeoutError, and what should follow is left out.
    """
    return Deadlines().within(seconds)


class Deadline:
    """A block with a time limit; use it once. Its task is cancelled at `at`, of the loop's time."""

    __slots__ = ("_cancelling", "_deadlines", "_expired", "_task", "at")

    def __init__(self, deadlines: Deadlines, at: float) -> None:
        self._deadlines = deadlines
        self.at = at
        self._expired = False

    def __enter__(self) -> None:
        task = asyncio.current_task(self._deadlines.loop)
        assert task is not None
        self._task, self._cancelling = task, task.cancelling()
        self._deadlines.enter(self)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._deadlines.leave(self)
        if (
            self._expired
            and self._task.uncancel() <= self._cancelling
            and kind is asyncio.CancelledError
        ):
            raise TimeoutError from error

    @property
    def expired(self) -> bool:
        """Whether the block was cut off."""
        return self._expired

    def expire(self) -> None:
        """Cut the block off."""
        self._expired = True
        self._task.cancel()
