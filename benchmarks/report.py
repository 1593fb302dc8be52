"""Measurements as a table for people."""

from collections.abc import Sequence

from benchmarks.measure import Measurement

_KINDS = ("collect", "agent", "model", "tool", "verifier", "rabbitmq", "redis")


def table(runs: Sequence[Measurement]) -> str:
    """One line per measurement; CPU in ms per rollout, memory in MB."""
    head = ["scenario", "rollouts", "in flight", "per s", "CPU ms", "whole run", *_KINDS]
    head += ["MB", "collect MB", "added p50", "p99 ms", "efficiency", "idle slots"]
    head += ["first row s", "failed", "starved", "load"]
    rows = [head, *(_line(run) for run in runs)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )


def _line(run: Measurement) -> list[str]:
    kinds = [f"{run.cpu_ms[kind]:.2f}" if kind in run.cpu_ms else "-" for kind in _KINDS]
    efficiency = "-" if run.efficiency is None else f"{run.efficiency:.3f}"
    return [
        run.scenario,
        str(run.rollouts),
        f"{run.in_flight_max}/{run.concurrency}",
        f"{run.rollouts_per_s:.0f}",
        f"{run.cpu_ms_total:.2f}",
        f"{run.cpu_ms_whole_run:.2f}",
        *kinds,
        f"{run.peak_mb_total:.0f}",
        f"{run.peak_mb['collect']:.0f}",
        f"{run.added_p50_ms:.1f}",
        f"{run.added_p99_ms:.1f}",
        efficiency,
        "-" if run.slot_time is None else f"{run.slot_time['idle']:.3f}",
        f"{run.first_row_s:.2f}",
        str(run.failed),
        f"{max(share for kind, share in run.starved.items() if kind != 'rabbitmq'):.2f}",
        f"{run.load_before:.1f}",
    ]
