"""The model stub beside a measurement: started, heard at its first request, asked what it saw."""

import contextlib
import json
import os
import statistics
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.processes import Watched, start
from benchmarks.scenarios import Scenario
from benchmarks.stub import StubOptions
from tests.support.ports import free_port

_READY_S: Final = 30.0
Samples = Sequence[tuple[float, int, int]]


@dataclass(frozen=True, slots=True)
class RunningModel:
    """A stub that serves."""

    port: int
    process: Watched

    @property
    def base_url(self) -> str:
        """Its OpenAI API."""
        return f"http://127.0.0.1:{self.port}/v1"

    def wait_for_first(self, collector: Watched, log: Path) -> None:
        """Until its first request. Raises RuntimeError where the collector ends before."""
        assert self.process.process is not None
        said = self.process.process.stdout
        assert said is not None
        assert collector.process is not None
        os.set_blocking(said.fileno(), False)
        while not said.readline():
            if collector.process.poll() is not None:
                raise RuntimeError(f"collect ended early: {tail(log)}")
            time.sleep(0.002)

    def seen(self) -> dict[str, Any]:
        """What it counted."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/stats", timeout=10) as answer:
            stats: dict[str, Any] = json.load(answer)
        return stats


@contextlib.contextmanager
def running_model(options: StubOptions, folder: Path) -> Iterator[RunningModel]:
    """Serve in a process of its own, which ends with the block."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.stub", str(port), json.dumps(asdict(options))]
    model = RunningModel(port, start("stub", command, folder / "stub.log", listen=True))
    try:
        wait_until(lambda: bool(model.seen()), f"nothing listens on port {port}")
        yield model
    finally:
        model.process.end()


def until_first_row(output: Callable[[], Path], collector: Watched) -> float:
    """When the output has bytes in it, or the collector has ended."""
    while True:
        with contextlib.suppress(OSError):
            if output().stat().st_size:
                return time.monotonic()
        if os.waitid(os.P_PID, collector.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return time.monotonic()
        time.sleep(0.005)


def steady(
    samples: Samples, scenario: Scenario, mean_s: float
) -> tuple[float | None, float | None]:
    """Mean in flight and efficiency while all slots could be busy: from as many requests on as the
    first rollouts make, until as many rollouts are left as there are slots.

    `mean_s`: of the latencies that the stub drew.
    """
    begin = scenario.edge_calls
    end = scenario.rollouts * scenario.stub.steps - begin
    steady = [sample for sample in samples if begin <= sample[1] <= end]
    if scenario.stub.latency == "none" or len(steady) < 10:
        return None, None
    seconds = steady[-1][0] - steady[0][0]
    rate = (steady[-1][1] - steady[0][1]) / seconds
    ideal = scenario.concurrency / mean_s
    return statistics.fmean(s[2] for s in steady), rate / ideal


def wait_until(ready: Callable[[], bool], otherwise: str, *, at_most_s: float = _READY_S) -> None:
    """Raises RuntimeError, saying `otherwise`, where it does not get ready."""
    deadline = time.monotonic() + at_most_s
    while True:
        with contextlib.suppress(OSError):
            if ready():
                return
        if time.monotonic() > deadline:
            raise RuntimeError(otherwise)
        time.sleep(0.05)


def tail(log: Path) -> str:
    """The end of a log."""
    return log.read_text(encoding="utf-8", errors="replace")[-2000:]
