"""Random faults every few seconds under load, then the oracle: `make soak MINUTES=10 SEED=1`.

Real processes over a private RabbitMQ and Redis. Runs of 500 tasks follow one another, each with
its own audit; memory of the workers that lived through it all is reported as a slope.
"""

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.support import services
from tests.support.cluster import KINDS, Cluster, cluster
from tests.support.runs import Worker

TASKS = 500
#: Seconds between two faults.
PAUSE_S = (1.0, 4.0)


@dataclass
class Monkey:
    """Hurts a cluster, and remembers what that may have cost."""

    warren: Cluster
    chance: random.Random
    forgot: bool = False
    """Whether the journal was emptied: what nobody held in memory may be repeated."""
    done: list[str] = field(default_factory=list)

    def strike(self) -> None:
        """Do one of the faults."""
        faults: list[Callable[[], None]] = [
            *[self._kill] * 4,
            self._stop,
            self._freeze,
            self._break_broker,
            self._kill_redis,
            self._empty_redis,
            self._close_connections,
        ]
        fault = self.chance.choice(faults)
        self.done.append(fault.__name__.strip("_"))
        fault()

    def _pick(self) -> Worker:
        return self.chance.choice(self.warren.living(self.chance.choice(KINDS)))

    def _kill(self) -> None:
        worker = self._pick()
        self.warren.kill(worker)
        self.warren.start(worker.kind, keep=True)

    def _stop(self) -> None:
        worker = self._pick()
        self.warren.stop(worker)
        self.warren.start(worker.kind, keep=True)

    def _freeze(self) -> None:
        worker = self._pick()
        self.warren.freeze(worker)
        time.sleep(self.chance.uniform(1, 5))
        worker.signal(signal.SIGCONT)

    def _break_broker(self) -> None:
        self.warren.rabbitmq.kill()
        self.warren.rabbitmq.start()

    def _kill_redis(self) -> None:
        self.warren.redis.kill()
        time.sleep(self.chance.uniform(0, 3))
        self.warren.redis.start()

    def _empty_redis(self) -> None:
        self.forgot = True
        self.warren.redis_say("FLUSHALL")

    def _close_connections(self) -> None:
        self.warren.rabbitmq.ctl("close_all_connections", "soak")


class Memory:
    """Resident memory of each worker over time."""

    def __init__(self, warren: Cluster) -> None:
        self._warren = warren
        self._seen: dict[Worker, list[tuple[float, float]]] = {}

    def look(self) -> None:
        """Take one sample of each living worker."""
        for workers in self._warren.workers.values():
            for worker in workers:
                if worker.alive:
                    sample = time.monotonic(), _resident_mib(worker.process.pid)
                    self._seen.setdefault(worker, []).append(sample)

    def report(self) -> str:
        """A line per worker that lived for a minute or more; slopes over its second half."""
        lines = ["memory of long-lived workers:"]
        for worker, seen in self._seen.items():
            lived_s = seen[-1][0] - seen[0][0]
            if lived_s >= 60:
                half = [s for s in seen if s[0] >= seen[0][0] + lived_s / 2]
                slope = (half[-1][1] - half[0][1]) / max(half[-1][0] - half[0][0], 1.0) * 60
                lines.append(f"  {worker.kind:9} {half[-1][1]:6.1f} MiB  {slope:+.2f} MiB/min")
        return "\n".join(lines)


def _resident_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096 / 2**20


def soak(warren: Cluster, minutes: float, chance: random.Random) -> int:
    """Run after run until the time is over; how many there were. AssertionError from the oracle."""
    for _ in range(2):
        warren.start(*KINDS, keep=True)
    memory = Memory(warren)
    ends_at = time.monotonic() + 60 * minutes
    runs = 0
    while time.monotonic() < ends_at:
        monkey = Monkey(warren, chance)
        warren.model.latency_s = 0.5
        run = warren.enqueue(TASKS)
        warren.answered(20, 60)
        while run.process.poll() is None and len(monkey.done) < 6:
            monkey.strike()
            memory.look()
            time.sleep(chance.uniform(*PAUSE_S))
        run.check(240, again=2 * TASKS if monkey.forgot else 0)
        runs += 1
        warren.model.reset()
        print(f"run {runs}: OK after {', '.join(monkey.done)}", flush=True)
    print(memory.report())
    return runs


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="warren-soak-"))
    rabbitmq = services.new_rabbitmq(folder / "rabbitmq")
    redis = services.new_redis(folder / "redis")
    try:
        rabbitmq.start()
        redis.start()
        with cluster(folder, rabbitmq, redis) as warren:
            runs = soak(warren, options.minutes, random.Random(options.seed))
    except AssertionError as e:
        print(f"FAILED (seed {options.seed}, logs in {folder}): {e}", file=sys.stderr)
        return 1
    finally:
        rabbitmq.remove()
        redis.remove()
    shutil.rmtree(folder)
    print(f"OK: {runs} runs, {runs * TASKS:,} rollouts, nothing lost, nothing twice")
    return 0


if __name__ == "__main__":
    sys.exit(main())
