"""How a run is doing, on stderr: a live bar on a terminal, a plain line now and then elsewhere."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

#: The rate is that of the last so many seconds: an ETA should follow what happens now.
RATE_WINDOW_S: Final = 10.0
_BAR_S: Final = 0.2
_LINE_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Statistics:
    """How the run stands at one moment."""

    total: int | None
    """None while nobody knows yet."""
    done: int
    """Rows of any status, those from earlier calls included."""
    failed: int
    resumed: int
    rate: float
    """Rollouts per second, lately."""
    mean_reward: float | None
    eta_s: float | None


class Progress:
    """Counts rows as they are committed."""

    def __init__(self, *, total: int | None = None, resumed: int = 0) -> None:
        self.total = total
        """May become known, or grow, while the run goes on."""
        self._resumed = resumed
        self._done = self._failed = self._rewarded = 0
        self._reward_sum = 0.0
        self._samples: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])

    def row(self, *, failed: bool, reward: float | None) -> None:
        """One more row is durable."""
        self._done += 1
        self._failed += failed
        if reward is not None:
            self._rewarded += 1
            self._reward_sum += reward

    def sample(self, now: float) -> Statistics:
        """How it stands at `now` (time.monotonic); called a few times per second at most."""
        self._samples.append((now, self._done))
        while len(self._samples) > 2 and self._samples[1][0] <= now - RATE_WINDOW_S:
            self._samples.popleft()
        then, before = self._samples[0]
        rate = (self._done - before) / max(now - then, 1e-9)
        done = self._resumed + self._done
        left = None if self.total is None else max(self.total - done, 0)
        return Statistics(
            total=self.total,
            done=done,
            failed=self._failed,
            resumed=self._resumed,
            rate=rate,
            mean_reward=self._reward_sum / self._rewarded if self._rewarded else None,
            eta_s=left / rate if left is not None and rate > 0 else None,
        )


class _View(Protocol):
    every_s: float

    def show(self, now: Statistics) -> None: ...
    def close(self) -> None: ...


@asynccontextmanager
async def showing(progress: Progress, stream: TextIO, *, quiet: bool) -> AsyncGenerator[None]:
    """Show `progress` on `stream` while the context is open, and once more as it closes."""
    if quiet:
        yield
        return
    view: _View = _Bar(stream) if stream.isatty() else _Lines(stream)
    ticker = asyncio.create_task(_tick(progress, view))
    try:
        yield
    finally:
        ticker.cancel()
        with suppress(OSError):
            view.show(progress.sample(time.monotonic()))
            view.close()


async def _tick(progress: Progress, view: _View) -> None:
    with suppress(OSError):  # nobody reads stderr any more; the run goes on
        while True:
            await asyncio.sleep(view.every_s)
            view.show(progress.sample(time.monotonic()))


class _Lines:
    """For logs and pipes."""

    every_s = _LINE_S

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def show(self, now: Statistics) -> None:
        total = "" if now.total is None else f"/{now.total:,}"
        self._stream.write(f"{now.done:,}{total} done, {describe(now)}\n")
        self._stream.flush()

    def close(self) -> None:
        self._stream.flush()


class _Bar:
    """For a terminal. rich is imported here: it costs 0.1 s that a pipe need not pay."""

    every_s = _BAR_S

    def __init__(self, stream: TextIO) -> None:
        self._bar = _rich_bar(stream)
        self._task = self._bar.add_task("", total=None, state="")
        self._bar.start()

    def show(self, now: Statistics) -> None:
        self._bar.update(
            self._task, completed=now.done, total=now.total, state=describe(now), refresh=True
        )

    def close(self) -> None:
        self._bar.stop()


def _rich_bar(stream: TextIO) -> "RichProgress":
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as RichProgress

    columns = (BarColumn(bar_width=20), MofNCompleteColumn(), TextColumn("{task.fields[state]}"))
    return RichProgress(*columns, console=Console(file=stream), auto_refresh=False)


def describe(now: Statistics) -> str:
    """`3 failed, 312.5/s, mean reward 0.62, ETA 0:41`."""
    parts = [f"{now.failed:,} failed", f"{now.rate:,.1f} rollouts/s"]
    if now.mean_reward is not None:
        parts.append(f"mean reward {now.mean_reward:.3f}")
    if now.resumed:
        parts.append(f"{now.resumed:,} from before")
    if now.eta_s is not None:
        parts.append(f"ETA {_clock(now.eta_s)}")
    return ", ".join(parts)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
