"""Runs another tool once and counts what it cost, as measure.py does for Warren."""

import contextlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.measure import Measurement
from benchmarks.model import RunningModel, running_model, steady, tail, until_first_row, wait_until
from benchmarks.peers.setup import Peer, Place, Setup
from benchmarks.processes import Watched, cpu_s, peak_bytes, session, start
from benchmarks.scenarios import Scenario
from tests.support.ports import free_port

_SERVERS_READY_S: Final = 600.0
_REST: Final = "rest"


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerRun:
    """One run, and what its servers took before it."""

    measured: Measurement
    """From the collector's start, with the servers up. All memory is counted."""
    servers_s: float
    """From the servers' start until they say that they serve."""
    servers_cpu_s: float
    row_bytes: float
    """Of output per rollout."""

    @property
    def first_row_s(self) -> float:
        """From nothing to a first row."""
        return self.servers_s + self.measured.first_row_s

    @property
    def cpu_ms_from_nothing(self) -> float:
        """Per rollout, all start-up included."""
        once = self.servers_cpu_s / self.measured.rollouts * 1000
        return self.measured.cpu_ms_whole_run + once


def measure_peer(peer: Peer, venv: Path, scenario: Scenario, folder: Path) -> PeerRun:
    """Run it once. Raises RuntimeError, with the log, where anything fails."""
    folder.mkdir(parents=True)
    load = os.getloadavg()[0]
    with contextlib.ExitStack() as stack:
        model = stack.enter_context(running_model(scenario.stub, folder))
        place = Place(folder=folder, venv=venv, model_url=model.base_url, port=free_port())
        setup = peer.prepare(scenario, place)
        setup.write(folder)
        began = time.monotonic()
        servers = _start_servers(setup, folder, stack)
        servers_s = time.monotonic() - began if servers else 0.0
        servers_cpu_s = servers.look() if servers else 0.0
        run = _Run(peer, scenario, setup, folder, servers)
        measured = run.collect(model, load)
        return PeerRun(
            measured=measured,
            servers_s=servers_s,
            servers_cpu_s=servers_cpu_s,
            row_bytes=run.output().stat().st_size / scenario.rollouts,
        )


def _start_servers(setup: Setup, folder: Path, stack: contextlib.ExitStack) -> Watched | None:
    if setup.servers is None:
        return None
    log = folder / "servers.log"
    servers = start("servers", setup.servers, log, environment=setup.environment, cwd=folder)
    stack.callback(servers.end)

    def ready() -> bool:
        assert servers.process is not None
        if servers.process.poll() is not None:
            raise RuntimeError(f"the servers ended: {tail(log)}")
        return setup.ready in log.read_text(encoding="utf-8", errors="replace")

    wait_until(ready, f"the servers do not get ready, see {log}", at_most_s=_SERVERS_READY_S)
    return servers


@dataclass(frozen=True, slots=True)
class _Run:
    peer: Peer
    scenario: Scenario
    setup: Setup
    folder: Path
    servers: Watched | None

    def output(self) -> Path:
        """Its rows. Raises FileNotFoundError where there are none yet."""
        found = next(self.folder.glob(self.setup.rows), None)
        if found is None:
            raise FileNotFoundError(self.setup.rows)
        return found

    def collect(self, model: RunningModel, load: float) -> Measurement:
        log = self.folder / "collect.log"
        began = time.monotonic()
        environment = self.setup.environment
        collector = start(
            "collect", self.setup.collect, log, environment=environment, cwd=self.folder
        )
        try:
            model.wait_for_first(collector, log)
            first = time.monotonic()
            start_up, before = collector.look(), self._of_servers(cpu_s)
            first_row = until_first_row(self.output, collector)
            code = collector.wait()
        finally:
            collector.end()
        ended = time.monotonic()
        if code:
            raise RuntimeError(f"{self.peer.name} ended with {code}: {tail(log)}")
        after, peaks = self._of_servers(cpu_s), self._of_servers(peak_bytes)
        rollouts = self.scenario.rollouts
        used = {"collect": (collector.cpu_s - start_up) / rollouts * 1000}
        used |= {kind: (after[kind] - before[kind]) / rollouts * 1000 for kind in after}
        peak_mb = {"collect": collector.peak_bytes / 1e6}
        peak_mb |= {kind: peak / 1e6 for kind, peak in peaks.items()}
        seen = model.seen()
        in_flight, efficiency = steady(seen["samples"], self.scenario, seen["mean_s"])
        return Measurement(
            scenario=f"{self.peer.name} {self.scenario.name}",
            rollouts=rollouts,
            concurrency=self.scenario.concurrency,
            rollouts_per_s=rollouts / (ended - first),
            wall_s=ended - began,
            first_row_s=first_row - began,
            cpu_ms=used,
            cpu_ms_total=sum(used.values()),
            cpu_ms_whole_run=sum(used.values()) + start_up / rollouts * 1000,
            peak_mb=peak_mb,
            peak_mb_total=sum(peak_mb.values()),
            added_p50_ms=None,
            added_p99_ms=None,
            in_flight_max=seen["in_flight_max"],
            in_flight_mean=in_flight,
            efficiency=efficiency,
            slot_time=None,
            starved={"collect": collector.starved},
            failed=rollouts - self._good_rows(),
            requests_per_rollout=seen["requests"] / rollouts,
            load_before=load,
        )

    def _of_servers(self, read: Callable[[int], float]) -> dict[str, float]:
        """By kind of process."""
        if self.servers is None:
            return {}
        kinds = {kind: 0.0 for kind in (*self.setup.server_kinds.values(), _REST)}
        for pid in session(self.servers.pid):
            kinds[kind_of(pid, self.setup.server_kinds)] += read(pid)
        return kinds

    def _good_rows(self) -> int:
        with self.output().open("rb") as lines:
            return sum(self.setup.is_good(json.loads(line)) for line in lines)


def kind_of(pid: int, kinds: Mapping[str, str]) -> str:
    """By the folder that it works in."""
    with contextlib.suppress(OSError):
        at = os.readlink(f"/proc/{pid}/cwd")
        return next((kind for part, kind in kinds.items() if part in at), _REST)
    return _REST
