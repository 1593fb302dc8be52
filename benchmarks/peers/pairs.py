"""Measures another tool and Warren turn about, since the machine's own pace changes by the hour."""

import json
import os
import statistics
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.measure import Measurement
from benchmarks.peers.run import PeerRun

_REPOSITORY: Final = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ours:
    """What Warren is measured with."""

    scenario: str
    python: Path
    """Of a virtual environment that Warren is installed in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two runs, one right after the other."""

    peer: PeerRun
    ours: Ours
    warren: Measurement

    @property
    def ratios(self) -> dict[str, float]:
        """How many times more the other tool needs, of each."""
        peer, warren = self.peer.measured, self.warren
        return {
            "CPU": peer.cpu_ms_total / warren.cpu_ms_total,
            "CPU, start-up too": self.peer.cpu_ms_from_nothing / warren.cpu_ms_whole_run,
            "time": warren.rollouts_per_s / peer.rollouts_per_s,
            "first row": self.peer.first_row_s / warren.first_row_s,
            "memory": peer.peak_mb_total / warren.peak_mb_total,
        }


def turn_about(
    contenders: Sequence[Ours],
    peer: Callable[[], PeerRun],
    warren: Callable[[Ours], Measurement],
    *,
    repeat: int,
) -> list[Pair]:
    """The other tool, then each of ours; then ours, then the other; and so on.

    What is compared runs one after the other, and none is always the one that finds a machine
    which the other has just kept busy.
    """
    pairs = []
    for number in range(repeat):
        if number % 2:
            runs = [(ours, warren(ours)) for ours in contenders]
            theirs = peer()
        else:
            theirs = peer()
            runs = [(ours, warren(ours)) for ours in contenders]
        pairs += [Pair(peer=theirs, ours=ours, warren=run) for ours, run in runs]
    return pairs


def measure_warren(ours: Ours, folder: Path, *, rollouts: int) -> Measurement:
    """`python -m benchmarks` with that interpreter. Raises RuntimeError, with what it said."""
    folder.mkdir(parents=True)
    report = folder / "report.json"
    command = [str(ours.python), "-m", "benchmarks", ours.scenario, "--json", str(report)]
    done = subprocess.run(
        [*command, "--rollouts", str(rollouts)],
        cwd=_REPOSITORY,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr}")
    run: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))["runs"][0]
    return Measurement(**run)


def medians(pairs: Sequence[Pair]) -> dict[Ours, dict[str, float]]:
    """Of each ratio, over the pairs with the same of ours."""
    by_ours: dict[Ours, list[Mapping[str, float]]] = {}
    for pair in pairs:
        by_ours.setdefault(pair.ours, []).append(pair.ratios)
    return {
        ours: {name: statistics.median(each[name] for each in ratios) for name in ratios[0]}
        for ours, ratios in by_ours.items()
    }


def as_json(pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """For people who calculate on."""
    return [
        {
            "peer": asdict(pair.peer),
            "warren": asdict(pair.warren),
            "python": str(pair.ours.python),
            "ratios": pair.ratios,
        }
        for pair in pairs
    ]
