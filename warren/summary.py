"""What a run came to: accumulated row by row, shown as a table or as one JSON object.

Memory is six bytes per task, whatever the rows hold. pass@k is the unbiased estimator of Chen et
al., "Evaluating Large Language Models Trained on Code" (2021), section 2.1: for a task with n
scored rollouts of which c passed, 1 - C(n-c, k) / C(n, k), averaged over the tasks with n >= k.
Rollouts without a reward say nothing about the policy: they are left out and counted as failed.
"""

import json
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import comb
from typing import Any, Final

from broker.journal.runs import Totals
from sinks.totals import RowSummary, Tally, add_totals

#: A rollout passes with a full reward; the margin is for sums of weights like 0.7 + 0.2 + 0.1.
PASS_REWARD: Final = 1.0 - 1e-6

_MOST: Final = 0xFFFF

Groups = Mapping[tuple[int, int], int]
"""How many tasks have n scored rollouts of which c passed, by (n, c)."""


def pass_at(groups: Groups) -> dict[int, float]:
    """pass@k for k = 1 .. the most scored rollouts that a task has."""
    most = max((n for n, _ in groups), default=0)
    return {k: _pass_at(k, groups) for k in range(1, most + 1)}


def _pass_at(k: int, groups: Groups) -> float:
    able = {(n, c): tasks for (n, c), tasks in groups.items() if n >= k}
    total = sum((1 - comb(n - c, k) / comb(n, k)) * tasks for (n, c), tasks in able.items())
    return total / sum(able.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentSummary:
    """One environment's share of a run."""

    environment: str
    tasks: int
    """Tasks with at least one row."""
    totals: Totals
    groups: Groups = field(default_factory=dict)
    """Empty where only totals are known, as from a run's record."""


class Accumulator:
    """Grows by a row at a time; nothing of the row is kept."""

    def __init__(self, environment: str) -> None:
        self._environment = environment
        self._tally = Tally()
        # By task index: rows, scored rollouts, passed ones.
        self._rows, self._scored, self._passed = array("H"), array("H"), array("H")

    def add(self, row: RowSummary) -> None:
        """Count one more row."""
        self._tally.add(row)
        self._grow(row.task_index + 1)
        _raise(self._rows, row.task_index)
        if row.reward is not None:
            _raise(self._scored, row.task_index)
            if row.reward >= PASS_REWARD:
                _raise(self._passed, row.task_index)

    def superseded(self, row: RowSummary) -> None:
        """This failed row no longer counts: a later one has taken its place."""
        if row.error_kind is None:
            raise ValueError(f"{row.rollout_id} did not fail")
        self._tally.superseded(row.error_kind)
        self._rows[row.task_index] -= 1

    def summary(self) -> EnvironmentSummary:
        """What it came to so far."""
        groups = Counter(zip(self._scored, self._passed, strict=True))
        return EnvironmentSummary(
            environment=self._environment,
            tasks=sum(1 for rows in self._rows if rows),
            totals=self._tally.totals(),
            groups={(n, c): tasks for (n, c), tasks in groups.items() if n},
        )

    def _grow(self, tasks: int) -> None:
        for counts in (self._rows, self._scored, self._passed):
            counts.extend([0] * (tasks - len(counts)))


def _raise(counts: "array[int]", at: int) -> None:
    if counts[at] < _MOST:
        counts[at] += 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """What `collect` and `enqueue --wait` tell when they end."""

    run_id: str
    environments: Sequence[EnvironmentSummary]
    wall_s: float
    outputs: Sequence[str] = ()
    """Paths that were written."""
    resumed: int = 0
    """Rows that an earlier call had written."""
    bad_lines: int = 0
    """Input lines that --skip-bad left out."""
    skipped: Sequence[str] = ()
    """Environments that can't run here: `code: skipped, ` why, and how to get it."""

    @property
    def totals(self) -> Totals:
        """Over all environments."""
        return add_totals([part.totals for part in self.environments])

    def to_json(self) -> str:
        """The object of the command line's contract, in one line."""
        totals = self.totals
        groups: Counter[tuple[int, int]] = Counter()
        for part in self.environments:
            groups.update(part.groups)
        contract: dict[str, Any] = {
            "run_id": self.run_id,
            "tasks": sum(part.tasks for part in self.environments),
            "rollouts": rollouts(totals),
            "completed": totals.completed,
            "truncated": totals.truncated,
            "failed": totals.failed,
            "failed_by_kind": dict(sorted(totals.failed_by_kind.items())),
            "mean_reward": mean_reward(totals),
            "pass_at": {str(k): value for k, value in pass_at(groups).items()},
            "model_calls": totals.model_calls,
            "tool_calls": totals.tool_calls,
            "tokens": {"prompt": totals.prompt_tokens, "generated": totals.generated_tokens},
            "wall_s": round(self.wall_s, 3),
            "outputs": [str(path) for path in self.outputs],
        }
        return json.dumps(contract, ensure_ascii=False)

    def table(self) -> str:
        """For people: a line per environment, then what was written where."""
        head, *body = _cells(self.environments)
        widths = [max(len(row[i]) for row in (head, *body)) for i in range(len(head))]
        lines = [_line(row, widths) for row in (head, ["-" * w for w in widths], *body)]
        return "\n".join([*lines, *self.skipped, "", *self._notes()])

    def _notes(self) -> list[str]:
        notes = [f"run {self.run_id}, {self.wall_s:.1f} s"]
        if self.resumed:
            notes.append(f"{self.resumed:,} rollouts were there already")
        if self.bad_lines:
            notes.append(f"{self.bad_lines:,} invalid input lines were left out")
        if self.totals.failed:
            notes.append("failed rollouts have reward null and are not in mean reward or pass@k")
        return notes + [f"wrote {path}" for path in self.outputs]


def rollouts(totals: Totals) -> int:
    """Rows of any status."""
    return totals.completed + totals.truncated + totals.failed


def mean_reward(totals: Totals) -> float | None:
    """Over the rows with a reward; None where there is none."""
    return totals.reward_sum / totals.rewarded if totals.rewarded else None


def _cells(environments: Sequence[EnvironmentSummary]) -> list[list[str]]:
    passes = [pass_at(part.groups) for part in environments]
    ks = _shown(max((max(each, default=0) for each in passes), default=0))
    head = ["environment", "tasks", "rollouts", "mean reward", *(f"pass@{k}" for k in ks)]
    head += ["truncated", "failed", "model calls", "tool calls", "tokens"]
    rows = [_row(part, each, ks) for part, each in zip(environments, passes, strict=True)]
    return [head, *rows]


def _row(part: EnvironmentSummary, passes: Mapping[int, float], ks: Sequence[int]) -> list[str]:
    totals = part.totals
    kinds = ", ".join(f"{kind} {n}" for kind, n in sorted(totals.failed_by_kind.items()))
    return [
        part.environment,
        f"{part.tasks:,}",
        f"{rollouts(totals):,}",
        _decimal(mean_reward(totals)),
        *(_decimal(passes.get(k)) for k in ks),
        f"{totals.truncated:,}",
        f"{totals.failed:,}" + (f" ({kinds})" if kinds else ""),
        f"{totals.model_calls:,}",
        f"{totals.tool_calls:,}",
        f"{totals.prompt_tokens + totals.generated_tokens:,}",
    ]


def _shown(most: int) -> list[int]:
    """All up to 4; beyond that 1, 4, 16, ... and the largest: more columns fit no terminal."""
    if most <= 4:
        return list(range(1, most + 1))
    return sorted({k for k in (1, 4, 16, 64, 256, most) if k <= most})


def _decimal(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = zip(cells, widths, strict=True)
    return "  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in rest)])
