"""What breaks NeMo Gym, done to Warren on 2,000 rollouts each; a table: `make drill`.

Real processes over a private RabbitMQ and Redis; the moments are drawn from the seed.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.support import services
from tests.support.cluster import KINDS, cluster
from tests.support.drill import SCENARIOS, Outcome, drill

HEAD = (
    "| scenario | rollouts | lost | doubled | finished calls repeated | in flight, asked again |"
    " scored 0.0 | wrong rows | refused | calls/s before | s to full rate |\n" + "|---" * 11 + "|"
)


def line(outcome: Outcome) -> str:
    """A row of the table."""
    o = outcome
    counts = o.rollouts, o.lost, o.doubled, o.repeated, o.in_flight, o.scored_0, o.wrong, o.refused
    cells = [o.scenario, *(f"{count:,}" for count in counts), f"{o.rate:.0f}", f"{o.back_s:.1f}"]
    return "| " + " | ".join(cells) + " |"


def main() -> int:
    """The command line."""
    options = _options(sys.argv[1:])
    folder = Path(tempfile.mkdtemp(prefix="warren-drill-"))
    rabbitmq = services.new_rabbitmq(folder / "rabbitmq")
    redis = services.new_redis(folder / "redis")
    bad = 0
    try:
        rabbitmq.start()
        redis.start()
        with cluster(folder, rabbitmq, redis, try_timeout_s=15.0) as warren:
            warren.start(*KINDS[:-1], *KINDS[:-1], prefetch=options.in_flight)
            print(HEAD, flush=True)
            for strike in SCENARIOS:
                if any(word in strike.__name__ for word in options.only.split(",")):
                    outcome = drill(
                        warren,
                        strike,
                        tasks=options.tasks,
                        in_flight=options.in_flight,
                        latency_s=options.latency,
                        seed=options.seed,
                    )
                    print(line(outcome), flush=True)
                    bad += not outcome.ok
    finally:
        rabbitmq.remove()
        redis.remove()
    shutil.rmtree(folder, ignore_errors=True)
    return 1 if bad else 0


def _options(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=2000)
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--latency", type=float, default=1.0, help="of the model, in seconds")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="words of scenarios, comma")
    return parser.parse_args(words)


if __name__ == "__main__":
    sys.exit(main())
