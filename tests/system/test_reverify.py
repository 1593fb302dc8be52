"""`warren reverify`: stored rollouts get new verdicts; no agent and no policy runs."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import rows_of, warren

SOURCE = """
import os
from warren import AgentTask, Context, Environment, PolicyRequest, Rollout

env = Environment("shop", judge_model="scripted")

@env.setup
def shelf() -> dict[str, int]:
    return {"apples": 3}

@env.agent
async def agent(ctx: Context, task: AgentTask) -> None:
    if task.row["n"] == 1:
        raise ValueError("an agent's mistake")
    await ctx.model()

@env.policy
def policy(request: PolicyRequest) -> str:
    return "{\\"scores\\": {\\"kind\\": 10}}"

@env.reward
async def judged(rollout: Rollout, ctx) -> float:
    found = await ctx.verdict("{answer}", {"answer": rollout.answer}, criteria={"kind": "it is"})
    return found.score

@env.reward(weight=0.5)
def right(rollout: Rollout) -> float:
    BROKEN
    return float(rollout.state == {"apples": 3} and "scores" in rollout.answer)
"""


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """Four rollouts: 0 and 3 fine, 1 with an agent that failed, 2 with a verifier that failed."""
    tasks = [
        {"responses_create_params": {"input": f"number {n}"}, "n": n, "kind": "x"} for n in range(4)
    ]
    (tmp_path / "tasks.jsonl").write_text("\n".join(map(json.dumps, tasks)) + "\n")
    write(tmp_path, 'if rollout.task["n"] == 2: raise KeyError("a bug")')
    warren(
        *("collect", "tasks.jsonl", "--env", "shop.py", "--model", "scripted"),
        *("-o", "rows.jsonl", "--run", "r", "-q"),
        cwd=tmp_path,
    ).ok()
    return tmp_path


def write(folder: Path, broken: str) -> None:
    (folder / "shop.py").write_text(SOURCE.replace("BROKEN", broken), encoding="utf-8")


def by_number(path: Path) -> dict[int, dict[str, Any]]:
    return {row["n"]: row for row in rows_of(path)}


def test_a_mended_verifier_scores_what_the_broken_one_could_not(stored: Path) -> None:
    before = by_number(stored / "rows.jsonl")
    assert [before[n]["reward"] for n in range(4)] == [1.5, None, None, 1.5]
    assert before[2]["warren"]["error"]["kind"] == "verifier"
    write(stored, "pass")
    done = warren("reverify", "rows.jsonl", "--env", "shop.py", "-o", "new.jsonl", cwd=stored).ok()
    assert "0.500" in done.out or "1.500" in done.out
    after = by_number(stored / "new.jsonl")
    assert [after[n]["reward"] for n in range(4)] == [1.5, None, 1.5, 1.5]
    assert after[2]["warren"]["status"] == "completed"
    assert after[2]["warren"]["error"] is None
    assert after[2]["reward_components"] == {"judged": 1.0, "right": 0.5}
    assert after[2]["warren"]["verifier"]["usage"]["model_calls"] == 1
    assert after[1] == before[1]
    assert after[0]["response"] == before[0]["response"]
    warren("audit", "new.jsonl", cwd=stored).ok()


def test_it_goes_on_where_it_was_and_reads_and_writes_parquet(stored: Path) -> None:
    write(stored, "pass")
    lines = (stored / "rows.jsonl").read_bytes().splitlines(keepends=True)
    (stored / "some.jsonl").write_bytes(b"".join(lines[:2]))
    command = ("--env", "shop.py", "--json", "-q", "-o", "new.parquet")
    warren("reverify", "some.jsonl", *command, cwd=stored).ok()
    assert warren("reverify", "rows.jsonl", *command, cwd=stored).ok().json["rollouts"] == 4
    words = ("--env", "shop.py", "-q", "-o", "last.jsonl")
    warren("reverify", "new.parquet", *words, cwd=stored).ok()
    assert [by_number(stored / "last.jsonl")[n]["reward"] for n in range(4)] == [
        *(1.5, None, 1.5, 1.5)
    ]


def test_a_reward_that_ends_its_process_is_a_failed_verdict_not_a_failed_command(
    stored: Path,
) -> None:
    write(stored, 'if rollout.task["n"] == 3: os._exit(3)')
    warren("reverify", "rows.jsonl", "--env", "shop.py", "-o", "new.jsonl", cwd=stored).ok()
    row = by_number(stored / "new.jsonl")[3]
    assert row["reward"] is None
    assert "exit status 3" in row["warren"]["error"]["message"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("rows.jsonl", "--env", "calculator", "-o", "n.jsonl"), "is of environment 'shop'"),
        (("rows.jsonl", "--env", "shop.py", "-o", "rows.jsonl"), "name the same file"),
        (("tasks.jsonl", "--env", "shop.py", "-o", "n.jsonl"), "tasks.jsonl:1: not a row of ours"),
        (("none.jsonl", "--env", "shop.py", "-o", "n.jsonl"), "no such file"),
        (("rows.jsonl", "-o", "n.jsonl"), "--env is missing"),
        (("rows.jsonl", "--env", "shop.py"), "-o is missing"),
    ],
)
def test_what_can_not_be_scored_is_said(stored: Path, words: tuple[str, ...], said: str) -> None:
    done = warren("reverify", *words, cwd=stored)
    assert done.code == 2
    assert said in done.err
    assert not (stored / "n.jsonl").exists()
