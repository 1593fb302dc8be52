"""`python -m benchmarks.peers {nemo-gym,verifiers} [WORKLOAD] --venv DIR ...`: see ../README.md."""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Final

from benchmarks.measure import Measurement, revision
from benchmarks.peers.nemo_gym import NEMO_GYM
from benchmarks.peers.pairs import Ours, Pair, as_json, measure_warren, medians, turn_about
from benchmarks.peers.run import PeerRun, measure_peer
from benchmarks.peers.setup import Peer
from benchmarks.peers.verifiers import VERIFIERS
from benchmarks.report import table
from benchmarks.scenarios import SCENARIOS, Scenario

_PEERS: Final = {peer.name: peer for peer in (NEMO_GYM, VERIFIERS)}
_WORKLOADS: Final = sorted(
    name.removeprefix("embedded-") for name in SCENARIOS if name.startswith("embedded-")
)


def main(argv: Sequence[str]) -> int:
    """Measure, print each run's line and the ratios, write the JSON."""
    options = _parser().parse_args(argv)
    peer = _PEERS[options.peer]
    scenario = _scenario(options)
    version = _version(options.venv, peer)
    sys.stderr.write(f"{version}\n")
    # Short: Ray's sockets lie in it, and a socket's path has 107 bytes.
    root = Path(tempfile.mkdtemp(prefix="wp-"))
    numbers = count()

    def theirs() -> PeerRun:
        folder = root / str(next(numbers))
        run = measure_peer(peer, options.venv, scenario, folder)
        shutil.rmtree(folder)
        _tell(run)
        return run

    def ours(contender: Ours) -> Measurement:
        run = measure_warren(contender, root / str(next(numbers)), rollouts=scenario.rollouts)
        sys.stderr.write(f"{table([run])}\n")
        return run

    try:
        contenders = [
            Ours(scenario=f"{transport}-{options.workload}", python=python)
            for python in options.python or [Path(sys.executable)]
            for transport in options.against
        ]
        if contenders:
            pairs = turn_about(contenders, theirs, ours, repeat=options.repeat)
            _tell_ratios(pairs)
            if options.json is not None:
                _write(options.json, version, pairs)
        else:
            for _ in range(options.repeat):
                theirs()
    except (RuntimeError, ValueError) as e:
        sys.stderr.write(f"{e}\n")
        return 1
    finally:
        if not options.keep:
            shutil.rmtree(root, ignore_errors=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    add = parser.add_argument
    add("peer", choices=_PEERS)
    add("workload", nargs="?", default="plain", choices=_WORKLOADS)
    add("--venv", type=Path, required=True, metavar="DIR", help="in which the tool is installed")
    add(
        "--against",
        nargs="*",
        default=["embedded", "rabbitmq"],
        choices=["embedded", "rabbitmq"],
        help="measure Warren beside each run of the tool; without a word: the tool alone",
    )
    add(
        "--python",
        nargs="*",
        type=Path,
        metavar="PYTHON",
        help="that Warren runs with (by default this one): of venvs that Warren is installed in",
    )
    add("--repeat", type=int, default=3, metavar="N", help="pairs of each kind")
    add("--rollouts", type=int, metavar="N", help="instead of the workload's own number")
    add("--json", type=Path, metavar="FILE", help="write the figures there too")
    add("--keep", action="store_true", help="keep the folder of a run that failed")
    return parser


def _scenario(options: argparse.Namespace) -> Scenario:
    scenario = SCENARIOS[f"embedded-{options.workload}"]
    rollouts = options.rollouts or scenario.rollouts
    return replace(scenario, name=options.workload, rollouts=rollouts)


def _version(venv: Path, peer: Peer) -> str:
    """What is measured. Raises SystemExit, with what to do, where it is not installed."""
    asked = f"import platform, importlib.metadata as m; print(m.version({peer.package!r}), "
    command = [str(venv / "bin" / "python"), "-c", asked + "platform.python_version())"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError) as e:
        raise SystemExit(
            f"{peer.package} is not installed in {venv}: "
            f"python3.13 -m venv {venv} && {venv}/bin/pip install {peer.package}"
        ) from e
    return f"{peer.name} {said[0]}, Python {said[1]}"


def _tell(run: PeerRun) -> None:
    sys.stderr.write(
        f"{table([run.measured])}\n"
        f"servers up after {run.servers_s:.1f} s and {run.servers_cpu_s:.1f} s of CPU; "
        f"first row {run.first_row_s:.1f} s after their start; "
        f"{run.cpu_ms_from_nothing:.1f} CPU ms per rollout with all start-up; "
        f"{run.row_bytes / 1000:.1f} kB per row\n"
    )


def _tell_ratios(pairs: Sequence[Pair]) -> None:
    for pair in pairs:
        _tell_ratio(pair.ours, pair.ratios, "pair")
    for ours, ratios in medians(pairs).items():
        _tell_ratio(ours, ratios, "median")


def _tell_ratio(ours: Ours, ratios: dict[str, float], what: str) -> None:
    times = ", ".join(f"{name} {ratio:.1f}x" for name, ratio in ratios.items())
    sys.stdout.write(f"{what}: {ours.scenario} ({ours.python}): {times}\n")


def _write(path: Path, version: str, pairs: Sequence[Pair]) -> None:
    report = {
        "peer": version,
        "revision": revision(),
        "cpus": os.cpu_count(),
        "pairs": as_json(pairs),
    }
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
