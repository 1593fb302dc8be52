"""`warren env init` writes what `warren env test` finds nothing wrong with."""

import subprocess
import sys
from pathlib import Path

import pytest

from broker.errors import UsageError
from warren import load_environment
from warren.env_test import Report, try_environment
from warren.scaffold import write_environment


async def tried(file: Path) -> Report:
    env = load_environment(str(file))
    assert env.tasks is not None
    return await try_environment(env, env.tasks.read_bytes().splitlines())


async def test_a_new_environment_works_at_once(tmp_path: Path) -> None:
    file, *_ = write_environment("my-letters", tmp_path / "new")
    report = await tried(file)
    assert report.environment == "my-letters"
    assert report.problems == []
    assert report.rollouts == 24
    assert report.mean_reward is not None
    assert 0 < report.mean_reward < 1
    assert "count_letter" in report.tool_seconds


async def test_a_reward_that_raises_is_a_problem_with_its_reason(tmp_path: Path) -> None:
    file, *_ = write_environment("broken", tmp_path)
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace("numbers[-1] ==", "numbers[-9] =="), encoding="utf-8")
    report = await tried(file)
    assert "reward 'correct'" in report.problems[0]
    assert "IndexError" in report.problems[0]


REPLAYS_DIFFERENTLY = """
import itertools
from warren import Environment

env = Environment("forgetful")
turns = itertools.count()


@env.agent
async def agent(ctx, task):
    async def aside(branch):
        await branch.model([{"role": "user", "content": f"turn {next(turns)}"}])

    await ctx.gather(aside)  # in a branch, which no transcript shows
    await ctx.model()


@env.reward
def one(rollout):
    return 1.0


@env.policy
def scripted(request):
    return "yes"
"""


async def test_an_agent_that_replays_differently_is_a_problem_that_names_the_call(
    tmp_path: Path,
) -> None:
    file = tmp_path / "forgetful.py"
    file.write_text(REPLAYS_DIFFERENTLY, encoding="utf-8")
    report = await try_environment(load_environment(str(file)), [b'{"prompt": "Go."}'])
    [problem] = report.problems
    assert "task 1, repeat 0, replayed as after a crash" in problem
    assert "agent: " in problem
    assert "0.0.0" in problem


def test_what_is_written_passes_its_own_tests(tmp_path: Path) -> None:
    write_environment("my-letters", tmp_path)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("class", "can't name a Python file; choose another, like my_class"),
        ("1st", "can't name a Python file"),
        ("json", "would hide Python's or Warren's 'json'"),
        ("warren", "would hide Python's or Warren's 'warren'"),
    ],
)
def test_a_name_that_would_not_work_is_refused(tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        write_environment(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    write_environment("mine", tmp_path)
    with pytest.raises(UsageError, match="exists already"):
        write_environment("mine", tmp_path)
    with pytest.raises(UsageError, match="can't name an environment"):
        write_environment("My Own", tmp_path)
