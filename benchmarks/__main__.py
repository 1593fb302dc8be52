"""`python -m benchmarks [SCENARIO ...] [--full] [--repeat N] [--json FILE]`: see README.md."""

import argparse
import contextlib
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Final

from benchmarks.measure import Measurement, Servers, measure, revision
from benchmarks.processes import Watched
from benchmarks.report import table
from benchmarks.scenarios import SCENARIOS, chosen
from tests.support.services import RabbitProcess, RedisProcess, new_rabbitmq, new_redis

#: RabbitMQ's own. With an eighth of it the log of large messages is copied to disk a second time.
_WAL_BYTES: Final = 512 << 20


def main(argv: Sequence[str]) -> int:
    """Measure, print the table, write the JSON."""
    options = _parser().parse_args(argv)
    try:
        scenarios = chosen(options.scenarios, full=options.full)
    except KeyError as e:
        sys.stderr.write(f"no scenario {e}; there are: {', '.join(SCENARIOS)}\n")
        return 2
    if options.rollouts:
        scenarios = [replace(each, rollouts=options.rollouts) for each in scenarios]
    root = Path(tempfile.mkdtemp(prefix="warren-bench-"))
    medians = []
    try:
        with _servers(root, [s.transport for s in scenarios]) as servers:
            for scenario in scenarios:
                at = servers if scenario.transport == "rabbitmq" else None
                runs = []
                for number in range(options.repeat):
                    folder = root / f"{scenario.name}-{number}"
                    runs.append(measure(scenario, folder, at))
                    shutil.rmtree(folder)
                medians.append(_median(runs))
                sys.stderr.write(f"{table(medians[-1:])}\n")
    finally:
        if not options.keep:
            shutil.rmtree(root, ignore_errors=True)
    sys.stdout.write(table(medians) + "\n")
    if options.json is not None:
        report = {
            "revision": revision(),
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
            "runs": [asdict(each) for each in medians],
        }
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=", ".join(SCENARIOS))
    parser.add_argument("--full", action="store_true", help="every scenario, at its full size")
    parser.add_argument("--rollouts", type=int, metavar="N", help="this many in every scenario")
    parser.add_argument("--repeat", type=int, default=1, metavar="N", help="median of N runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--keep", action="store_true", help="keep logs of a run that failed")
    return parser


def _median(runs: Sequence[Measurement]) -> Measurement:
    """The run whose CPU is the median one: its figures belong together."""
    middle = statistics.median_low([run.cpu_ms_total for run in runs])
    return next(run for run in runs if run.cpu_ms_total == middle)


@contextlib.contextmanager
def _servers(root: Path, transports: Sequence[str]) -> Iterator[Servers | None]:
    if "rabbitmq" not in transports:
        yield None
        return
    rabbitmq = new_rabbitmq(root / "rabbitmq", wal_bytes=_WAL_BYTES)
    redis = new_redis(root / "redis")
    with contextlib.ExitStack() as stack:
        for server in (rabbitmq, redis):
            stack.callback(server.remove)
            server.start()
        yield Servers(rabbitmq.url, redis.url, [_watched(rabbitmq), _watched(redis)])


def _watched(server: object) -> Watched:
    match server:
        case RabbitProcess(pid=int() as pid):
            return Watched("rabbitmq", pid)
        case RedisProcess(pid=int() as pid):
            return Watched("redis", pid)
    raise RuntimeError("benchmarks need RabbitMQ and Redis as processes, not in Docker")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
