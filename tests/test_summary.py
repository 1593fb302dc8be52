"""The summary's figures, and progress that tells how it goes."""

import io
import json
from dataclasses import replace
from itertools import combinations
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.journal.runs import Totals
from sinks.totals import RowSummary
from warren.progress import RATE_WINDOW_S, Progress, describe, showing
from warren.summary import Accumulator, EnvironmentSummary, RunSummary, pass_at


def row(task: int, repeat: int, reward: float | None, error: str | None = None) -> RowSummary:
    return RowSummary(
        run="r",
        generation="g",
        rollout_id=f"r/{task}/{repeat}",
        task_index=task,
        repeat=repeat,
        status="failed" if error else "completed",
        error_kind=error,
        reward=reward,
        model_calls=2,
        tool_calls=1,
        prompt_tokens=10,
        generated_tokens=5,
        cost_usd=0.0,
    )


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=6), min_size=1, max_size=5))
def test_pass_at_k_is_the_mean_over_all_ways_to_pick_k(tasks: list[list[bool]]) -> None:
    accumulator = Accumulator("e")
    for task, passes in enumerate(tasks):
        for repeat, passed in enumerate(passes):
            accumulator.add(row(task, repeat, 1.0 if passed else 0.5))
    computed = pass_at(accumulator.summary().groups)
    assert list(computed) == list(range(1, max(map(len, tasks)) + 1))
    for k, value in computed.items():
        able = [[any(pick) for pick in combinations(t, k)] for t in tasks if len(t) >= k]
        assert value == pytest.approx(fmean(fmean(picks) for picks in able))


def test_a_rollout_without_reward_is_not_a_failure_to_pass() -> None:
    accumulator = Accumulator("e")
    accumulator.add(row(0, 0, 1.0))
    accumulator.add(row(0, 1, None, "infra"))
    accumulator.add(row(1, 0, None, "tool"))
    summary = accumulator.summary()
    assert (summary.tasks, pass_at(summary.groups)) == (2, {1: 1.0})
    assert summary.totals.failed_by_kind == {"infra": 1, "tool": 1}


def test_a_superseded_row_no_longer_counts() -> None:
    accumulator = Accumulator("e")
    failed = row(0, 0, None, "infra")
    accumulator.add(failed)
    accumulator.superseded(failed)
    accumulator.add(row(0, 0, 1.0))
    summary = accumulator.summary()
    assert (summary.tasks, summary.totals.failed, summary.totals.completed) == (1, 0, 1)


def test_memory_is_a_few_bytes_per_task() -> None:
    accumulator = Accumulator("e")
    for task in range(10_000):
        accumulator.add(row(task, 0, 1.0))
    held = [getattr(accumulator, name) for name in ("_rows", "_scored", "_passed")]
    assert sum(a.buffer_info()[1] * a.itemsize for a in held) <= 6 * 10_000


def summary() -> RunSummary:
    accumulator = Accumulator("calculator")
    accumulator.add(row(0, 0, 1.0))
    accumulator.add(row(0, 1, 0.0))
    accumulator.add(row(1, 0, None, "model"))
    return RunSummary(
        run_id="r1",
        environments=[accumulator.summary()],
        wall_s=2.5,
        outputs=["out.jsonl"],
        resumed=1,
    )


def test_the_json_object_is_the_contract() -> None:
    assert json.loads(summary().to_json()) == {
        "run_id": "r1",
        "tasks": 2,
        "rollouts": 3,
        "completed": 2,
        "truncated": 0,
        "failed": 1,
        "failed_by_kind": {"model": 1},
        "mean_reward": 0.5,
        "pass_at": {"1": 0.5, "2": 1.0},
        "model_calls": 6,
        "tool_calls": 3,
        "tokens": {"prompt": 30, "generated": 15},
        "wall_s": 2.5,
        "outputs": ["out.jsonl"],
    }


def test_the_table_says_it_all_in_lines_of_one_width() -> None:
    head, rule, line, *notes = summary().table().splitlines()
    assert len(head) == len(rule) == len(line)
    assert line.split()[:8] == ["calculator", "2", "3", "0.500", "0.500", "1.000", "0", "1"]
    assert line.endswith("1 (model 1)            6           3      45")
    assert "wrote out.jsonl" in notes


def test_what_was_skipped_stands_below_its_neighbours_with_how_to_get_it() -> None:
    line = "code: skipped, no sandbox: bwrap is missing; get it with: apt-get install bubblewrap"
    made = replace(summary(), skipped=[line]).table().splitlines()
    assert made[3:5] == [line, ""]


def test_a_run_without_any_row_has_a_table_too() -> None:
    empty = EnvironmentSummary(environment="e", tasks=0, totals=Totals())
    made = RunSummary(run_id="r", environments=[empty], wall_s=0.0)
    assert json.loads(made.to_json())["mean_reward"] is None
    assert "e " in made.table()


def test_the_rate_follows_what_happens_now() -> None:
    progress = Progress(total=1000, resumed=100)
    start = progress.sample(0.0)
    assert (start.done, start.mean_reward) == (100, None)
    progress = Progress(total=1000, resumed=100)
    base = progress.sample(1e9)  # far beyond the clock's start: only later samples count
    assert base.total == 1000
    progress.sample(1e9 + 1)
    for _ in range(50):
        progress.row(failed=False, reward=0.5)
    progress.row(failed=True, reward=None)
    now = progress.sample(1e9 + 1 + RATE_WINDOW_S)
    assert (now.done, now.failed, now.mean_reward) == (151, 1, 0.5)
    assert now.rate == pytest.approx(5.1, rel=0.2)
    assert now.eta_s == pytest.approx((1000 - 151) / now.rate)
    assert "100 from before" in describe(now)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


async def test_progress_ends_with_how_it_stands_on_pipes_and_terminals() -> None:
    for stream in (io.StringIO(), Terminal()):
        progress = Progress(total=2)
        async with showing(progress, stream, quiet=False):
            progress.row(failed=False, reward=1.0)
            progress.row(failed=True, reward=None)
        shown = stream.getvalue()
        assert "2/2" in shown
        assert "1 failed" in shown


async def test_quiet_progress_writes_nothing() -> None:
    stream = io.StringIO()
    async with showing(Progress(total=1), stream, quiet=True):
        pass
    assert stream.getvalue() == ""


async def test_a_broken_stderr_does_not_hurt_the_run() -> None:
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    async with showing(Progress(), Broken(), quiet=False):
        pass
