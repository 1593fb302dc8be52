"""Runs one scenario and counts what it cost."""

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.model import (
    RunningModel,
    running_model,
    steady,
    tail,
    until_first_row,
    wait_until,
)
from benchmarks.processes import Watched, start
from benchmarks.rows import Rows, read_rows
from benchmarks.scenarios import Scenario
from benchmarks.slot_time import slot_time
from tests.support.ports import free_port

ENVIRONMENT: Final = Path(__file__).with_name("environment.py")
KINDS: Final = ("agent", "tool", "model", "verifier")


@dataclass(frozen=True, slots=True)
class Servers:
    """What runs beside the workers."""

    broker_url: str
    redis_url: str
    watched: Sequence[Watched]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What one run cost."""

    scenario: str
    rollouts: int
    concurrency: int
    rollouts_per_s: float
    """From the first model request to the collector's end."""
    wall_s: float
    """The collector's whole life."""
    first_row_s: float
    """From the collector's start to the first bytes in its output."""
    cpu_ms: Mapping[str, float]
    """Per rollout and kind of process, from the first model request on (`collect` too)."""
    cpu_ms_total: float
    cpu_ms_whole_run: float
    """The collector's start-up included."""
    peak_mb: Mapping[str, float]
    peak_mb_total: float
    """Over all but broker and Redis."""
    added_p50_ms: float | None
    """Per model call: from the agent's asking to its having the answer, less the model's time;
    where the model takes time, of the calls in the middle (see `Rows.added_ms`)."""
    added_p99_ms: float | None
    in_flight_max: int
    in_flight_mean: float | None
    """While there was enough to do (see `steady`)."""
    efficiency: float | None
    """Model calls per second in that time over `concurrency / mean latency`."""
    slot_time: Mapping[str, float] | None
    """Where the slots' time went, as shares (slot_time.py)."""
    starved: Mapping[str, float]
    """By kind of process: of the time in which its main thread wanted a CPU, the share in which it
    had none. Where that is much, rates, latencies and efficiency are the machine's, not ours."""
    failed: int
    requests_per_rollout: float
    load_before: float
    """The machine's load average, before this run."""


def measure(scenario: Scenario, folder: Path, servers: Servers | None) -> Measurement:
    """Run it once. Raises RuntimeError, with the log, where anything fails."""
    folder.mkdir(parents=True)
    load = os.getloadavg()[0]
    with contextlib.ExitStack() as stack:
        model = stack.enter_context(running_model(scenario.stub, folder))
        _write_input(folder, scenario, model.port)
        workers = []
        if servers is not None:
            workers = list(_workers(scenario, folder, servers, stack))
        seen = _collect(scenario, folder, servers, workers, model)
        return _measured(scenario, seen, read_rows(_output(folder)), model.seen(), load)


def _write_input(folder: Path, scenario: Scenario, port: int) -> None:
    with (folder / "tasks.jsonl").open("w", encoding="utf-8") as tasks:
        for index in range(scenario.rollouts):
            question = f"Task {index:08d}: what is the weather in Oslo?"
            row = {"responses_create_params": {"input": [{"role": "user", "content": question}]}}
            tasks.write(json.dumps(row) + "\n")
    (folder / "warren.toml").write_text(
        f'[models."bench"]\nbase_urls = ["http://127.0.0.1:{port}/v1"]\n'
        f"max_concurrency = {scenario.concurrency * 2}\n",
        encoding="utf-8",
    )


def _workers(
    scenario: Scenario, folder: Path, servers: Servers, stack: contextlib.ExitStack
) -> Iterator[Watched]:
    prefetch = {
        "agent": -(-scenario.concurrency // scenario.processes),
        "model": -(-scenario.concurrency // scenario.processes),
        "tool": 256,
        "verifier": 256,
    }
    ports = []
    for kind in KINDS:
        for number in range(scenario.processes):
            ports.append(free_port())
            command = [
                *(sys.executable, "-m", "warren", "worker", kind),
                *("--prefetch", str(prefetch[kind]), "--metrics-port", str(ports[-1])),
                *(("--model", "bench") if kind == "model" else ()),
                *("--env", str(ENVIRONMENT), *_common(folder, servers)),
            ]
            worker = start(kind, command, folder / f"{kind}{number}.log")
            stack.callback(worker.end)
            yield worker
    for port in ports:
        _wait_until_ready(port)


def _common(folder: Path, servers: Servers | None) -> list[str]:
    urls = ["--broker", servers.broker_url, "--redis", servers.redis_url] if servers else []
    return [*urls, "--config", str(folder / "warren.toml")]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Collected:
    """What was seen of one collector, from its start to its end."""

    watched: Sequence[Watched]
    """The servers, the workers and, last, the collector."""
    cpu_at_first: Sequence[float]
    """CPU seconds that each had used at the first model request."""
    began: float
    """Monotonic seconds, as all here."""
    first: float
    """The first model request."""
    first_row: float
    ended: float


def _collect(
    scenario: Scenario,
    folder: Path,
    servers: Servers | None,
    workers: Sequence[Watched],
    model: RunningModel,
) -> _Collected:
    before = [*(servers.watched if servers else ()), *workers]
    began = time.monotonic()
    collector = start("collect", _command(scenario, folder, servers), folder / "collect.log")
    watched = [*before, collector]
    try:
        model.wait_for_first(collector, folder / "collect.log")
        first = time.monotonic()
        at_first = [each.look() for each in watched]
        first_row = until_first_row(lambda: _output(folder), collector)
        code = collector.wait()
    finally:
        collector.end()
    ended = time.monotonic()
    for each in before:
        each.look()
    if code:
        raise RuntimeError(f"collect ended with {code}: {tail(folder / 'collect.log')}")
    return _Collected(
        watched=watched,
        cpu_at_first=at_first,
        began=began,
        first=first,
        first_row=first_row,
        ended=ended,
    )


def _command(scenario: Scenario, folder: Path, servers: Servers | None) -> list[str]:
    return [
        *(sys.executable, "-m", "warren", "collect", str(folder / "tasks.jsonl")),
        *("-o", str(_output(folder)), "--env", str(ENVIRONMENT), "--model", "bench", "--json"),
        *("-q", "--concurrency", str(scenario.concurrency), "--max-steps", "100"),
        *(("--workers", "external") if servers else ()),
        *_common(folder, servers),
    ]


def _output(folder: Path) -> Path:
    return folder / "rows.jsonl"


def _measured(
    scenario: Scenario, seen: _Collected, rows: Rows, stats: Mapping[str, Any], load: float
) -> Measurement:
    used = _cpu_ms(scenario, seen)
    start_up = seen.cpu_at_first[-1] / scenario.rollouts * 1000
    peaks = _peaks(seen.watched)
    added_ms = rows.added_ms(edge=scenario.edge_calls)
    in_flight, efficiency = steady(stats["samples"], scenario, stats["mean_s"])
    return Measurement(
        scenario=scenario.name,
        rollouts=scenario.rollouts,
        concurrency=scenario.concurrency,
        rollouts_per_s=scenario.rollouts / (seen.ended - seen.first),
        wall_s=seen.ended - seen.began,
        first_row_s=seen.first_row - seen.began,
        cpu_ms=used,
        cpu_ms_total=sum(used.values()),
        cpu_ms_whole_run=sum(used.values()) + start_up,
        peak_mb=peaks,
        peak_mb_total=sum(mb for kind, mb in peaks.items() if kind not in {"rabbitmq", "redis"}),
        added_p50_ms=_percentile(added_ms, 0.5),
        added_p99_ms=_percentile(added_ms, 0.99),
        in_flight_max=stats["in_flight_max"],
        in_flight_mean=in_flight,
        efficiency=efficiency,
        slot_time=None if efficiency is None else slot_time(rows.lives, scenario.concurrency),
        starved={each.kind: each.starved for each in seen.watched},
        failed=rows.failed,
        requests_per_rollout=stats["requests"] / scenario.rollouts,
        load_before=load,
    )


def _cpu_ms(scenario: Scenario, seen: _Collected) -> dict[str, float]:
    """Per rollout and kind of process, from the first model request on."""
    used = {each.kind: 0.0 for each in seen.watched}
    for each, already in zip(seen.watched, seen.cpu_at_first, strict=True):
        used[each.kind] += (each.cpu_s - already) / scenario.rollouts * 1000
    return used


def _peaks(watched: Sequence[Watched]) -> dict[str, float]:
    peaks = {each.kind: 0.0 for each in watched}
    for each in watched:
        peaks[each.kind] += each.peak_bytes / 1e6
    return peaks


def _percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[int(share * (len(values) - 1))] if values else float("nan")


def _wait_until_ready(port: int) -> None:
    url = f"http://127.0.0.1:{port}/readyz"

    def ready() -> bool:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)

    wait_until(ready, f"the worker with metrics port {port} does not get ready")


def revision() -> str:
    """The commit that is measured."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
