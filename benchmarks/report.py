"""Measurements as a table for people."""

from collections.abc import Sequence

from benchmarks.measure import Measurement

_KINDS = ("collect", "agent", "model", "tool", "verifier", "resources", "rabbitmq", "redis", "rest")


def table(runs: Sequence[Measurement]) -> str:
    """One line per measurement; CPU in ms per rollout, memory in MB."""
    kinds = [kind for kind in _KINDS if any(kind in run.cpu_ms for run in runs)]
    head = ["scenario", "rollouts", "in flight", "per s", "CPU ms", "whole run", *kinds]
    head += ["MB", "collect MB", "added p50", "p99 ms", "efficiency", "idle slots"]
    head += ["first row s", "failed", "starved", "load"]
    rows = [head, *(_line(run, kinds) for run in runs)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )


def _line(run: Measurement, kinds: Sequence[str]) -> list[str]:
    return [
        run.scenario,
        str(run.rollouts),
        f"{run.in_flight_max}/{run.concurrency}",
        f"{run.rollouts_per_s:.0f}",
        f"{run.cpu_ms_total:.2f}",
        f"{run.cpu_ms_whole_run:.2f}",
        *(_number(run.cpu_ms.get(kind), 2) for kind in kinds),
        f"{run.peak_mb_total:.0f}",
        f"{run.peak_mb['collect']:.0f}",
        _number(run.added_p50_ms, 1),
        _number(run.added_p99_ms, 1),
        _number(run.efficiency, 3),
        _number(run.slot_time["idle"] if run.slot_time else None, 3),
        f"{run.first_row_s:.2f}",
        str(run.failed),
        f"{max(share for kind, share in run.starved.items() if kind != 'rabbitmq'):.2f}",
        f"{run.load_before:.1f}",
    ]


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
