"""`warren env init` writes what `warren env test` finds nothing wrong with."""

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


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    write_environment("mine", tmp_path)
    with pytest.raises(UsageError, match="exists already"):
        write_environment("mine", tmp_path)
    with pytest.raises(UsageError, match="can't name an environment"):
        write_environment("My Own", tmp_path)
