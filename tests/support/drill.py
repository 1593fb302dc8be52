"""What breaks NeMo Gym, done to Warren: one run per scenario, with faults at seeded moments.

The scenarios are those of ../shared/reference/nemo_gym.md, section 3, and two of our own. Each is
a `warren collect` over external workers on a model that takes its time; what is counted is what
`Outcome` says.
"""

import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tests.support.cluster import Cluster
from tests.support.oracle import expected_reward, repeated
from tests.support.recovery import Pace
from tests.support.runs import Run

Strike = Callable[[Cluster, Run], float]
"""Does the fault; the moment at which it was over, in monotonic seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a scenario cost."""

    scenario: str
    rollouts: int
    lost: int
    doubled: int
    repeated: int
    """Model calls made again, beside those that a dead gateway had in flight."""
    in_flight: int
    """Those: asked for again since nobody could know their answers."""
    scored_0: int
    """Rewards of 0.0, which no undisturbed rollout here has."""
    wrong: int
    """Rows that an undisturbed run would not have."""
    refused: int
    """Requests that the model answered with an error: they cost nothing."""
    rate: float
    """Answers per second before the fault."""
    back_s: float
    """Seconds from its end until the rate was back."""

    @property
    def ok(self) -> bool:
        """Whether it cost nothing but time."""
        return not (self.lost or self.doubled or self.repeated or self.scored_0 or self.wrong)


def dead_agent(warren: Cluster, run: Run) -> float:
    """kill -9 of an agent worker."""
    warren.kill(warren.living("agent")[0])
    ended = time.monotonic()
    warren.start("agent")
    return ended


def one_500(warren: Cluster, run: Run) -> float:
    """One HTTP 500 of the model."""
    warren.model.errors = 1
    warren.until(lambda: not warren.model.errors)
    return time.monotonic()


def storm_of_429(warren: Cluster, run: Run) -> float:
    """Nothing but 429 for ten seconds."""
    warren.model.storming = True
    time.sleep(10)  # the fault itself
    warren.model.storming = False
    return time.monotonic()


def hung_model(warren: Cluster, run: Run) -> float:
    """Twenty requests that are never answered: it is over when their tries are, after 15 s."""
    warren.model.hangs = 20
    warren.until(lambda: not warren.model.hangs)
    return time.monotonic() + warren.try_timeout_s


def dead_collector(warren: Cluster, run: Run) -> float:
    """kill -9 of the collector, the same command again."""
    warren.kill_command(run)
    warren.go_on(run)
    return time.monotonic()


def torn_tail(warren: Cluster, run: Run) -> float:
    """As before, and half a line stands at the output's end: what dying in a write leaves."""
    warren.kill_command(run)
    lines = run.output.read_bytes().splitlines(keepends=True)
    run.output.write_bytes(b"".join([*lines, lines[-1][: len(lines[-1]) // 2]]))
    warren.go_on(run)
    return time.monotonic()


def duplicated_row(warren: Cluster, run: Run) -> float:
    """As before, and a line stands in the output twice."""
    warren.kill_command(run)
    lines = run.output.read_bytes().splitlines(keepends=True)
    run.output.write_bytes(b"".join([*lines, lines[len(lines) // 2]]))
    warren.go_on(run)
    return time.monotonic()


def stateful_tools_restarted(warren: Cluster, run: Run) -> float:
    """kill -9 of the tool workers that hold the rollouts' state in hand."""
    for worker in warren.living("tool"):
        warren.kill(worker)
    warren.start("tool", "tool")
    return time.monotonic()


def dead_gateway(warren: Cluster, run: Run) -> float:
    """kill -9 of a model gateway."""
    warren.kill(warren.living("model")[0])
    ended = time.monotonic()
    warren.start("model")
    return ended


def dead_broker(warren: Cluster, run: Run) -> float:
    """kill -9 of RabbitMQ, which comes back with what it had."""
    warren.rabbitmq.kill()
    warren.rabbitmq.start()
    return time.monotonic()


#: The eight of nemo_gym.md, then two of our own.
SCENARIOS: Final[tuple[Strike, ...]] = (
    dead_agent,
    one_500,
    storm_of_429,
    hung_model,
    dead_collector,
    torn_tail,
    duplicated_row,
    stateful_tools_restarted,
    dead_gateway,
    dead_broker,
)


def drill(
    warren: Cluster, strike: Strike, *, tasks: int, in_flight: int, latency_s: float, seed: int
) -> Outcome:
    """One scenario; it strikes at a moment that the seed draws. AssertionError if it hangs."""
    warren.restore()
    warren.model.latency_s, warren.model.spread = latency_s, 0.5
    game = "ledger" if strike is stateful_tools_restarted else "lookup"
    run = warren.collect(tasks, "--workers", "external", "--window", str(in_flight), game=game)
    pace = Pace(warren, run)
    rate = pace.measure()
    moment = random.Random(f"{seed} {strike.__name__}").uniform(0.1, 0.5)
    warren.answered(int(moment * 2 * tasks))
    ended = strike(warren, run)
    back_s = pace.back(rate, ended)
    warren.model.latency_s = 0.05
    run.wait(600)
    return _outcome(warren, run, strike.__name__, rate, back_s)


def _outcome(warren: Cluster, run: Run, scenario: str, rate: float, back_s: float) -> Outcome:
    rows = run.rows()
    counts = Counter(row["warren"]["rollout_id"] for row in rows)
    return Outcome(
        scenario=scenario.replace("_", " "),
        rollouts=run.tasks,
        lost=run.tasks - len(counts),
        doubled=len(rows) - len(counts),
        repeated=repeated(warren.model, run.id, warren.excused).total(),
        in_flight=warren.excused.total(),
        scored_0=sum(row["reward"] == 0.0 for row in rows),
        wrong=sum(row["reward"] != expected_reward(row["warren"]["task_index"]) for row in rows),
        refused=warren.model.refused.total(),
        rate=rate,
        back_s=back_s,
    )
