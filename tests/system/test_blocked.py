"""User code that blocks the event loop hangs no command: its author is told who, and what to do."""

import json
from pathlib import Path
from subprocess import DEVNULL

import pytest

from tests.support.command import at_once, ended, rows_of, spawn, warren, write_rows

SOURCE = """
import os, re, time
from warren import Environment, Rollout

env = Environment("stuck", judge_model="scripted", tasks="tasks.jsonl")


def waits_for(what):
    if os.environ.get("BLOCKS") == what:
        time.sleep(60)


def holds_the_lock():
    re.match(r"(a+)+$", "a" * 60 + "b")


@env.tool
async def look() -> str:
    "Look."
    waits_for("tool")
    if os.environ.get("BLOCKS") == "everything":
        holds_the_lock()
    return "seen"


@env.reward(timeout_s=2.0)
async def fine(rollout: Rollout, ctx) -> float:
    waits_for("reward")
    return float(await ctx.judge("fine?"))


@env.policy
async def scripted(request):
    if request.path.startswith("verify"):
        waits_for("judge")
        return "1"
    if request.items[-1].get("type") == "function_call_output":
        return "Done."
    return [{"type": "function_call", "name": "look", "call_id": "c", "arguments": "{}"}]
"""
ADVICE = "a plain `def` runs in a thread"
LIMIT = {"WARREN_BLOCK_LIMIT": "1.5"}
COLLECT = ("collect", "tasks.jsonl", "--env", "stuck.py", "--model", "scripted", "-o", "r.jsonl")
REVERIFY = ("reverify", "r.jsonl", "--env", "stuck.py", "-o")
ENV_TEST = ("env", "test", "stuck.py", "--json")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "stuck.py").write_text(SOURCE, encoding="utf-8")
    write_rows(tmp_path / "tasks.jsonl", [{"prompt": "Look."}])
    return tmp_path


def test_collect_and_env_test_name_the_tool_and_reverify_the_reward_or_judge(folder: Path) -> None:
    collect, tried = at_once(COLLECT, ENV_TEST, cwd=folder, BLOCKS="tool", **LIMIT)
    assert collect.code == 70, collect.err
    assert "stuck.py:10: waits_for blocked the event loop for 1.5 s" in collect.err
    assert ADVICE in collect.err
    assert "run the same command again" in collect.err
    assert tried.code == 4, tried.err
    report = json.loads(tried.out)
    [problem] = report["problems"]
    assert report["ok"] is False
    assert "stuck.py:10: waits_for blocked the event loop" in problem
    assert ADVICE in problem

    warren(*COLLECT, cwd=folder).ok()
    assert rows_of(folder / "r.jsonl")[0]["reward"] == 1.0, "it goes on where it was"

    reward, judge = [
        spawn(*REVERIFY, f"{what}.jsonl", cwd=folder, variables={"BLOCKS": what, **LIMIT})
        for what in ("reward", "judge")
    ]
    done = ended(reward).ok()
    assert "stuck.py:10: waits_for has blocked its own process for 1.5 s" in done.err
    [row] = rows_of(folder / "reward.jsonl")
    assert row["reward"] is None
    assert "it blocked its process" in row["warren"]["error"]["message"]
    done = ended(judge)
    assert done.code == 70, done.err
    assert "stuck.py:10: waits_for blocked the event loop" in done.err
    assert "what was scored is safe" in done.err


def test_code_that_holds_the_interpreters_lock_is_named_with_what_to_write(folder: Path) -> None:
    for done in at_once(COLLECT, ENV_TEST, cwd=folder, BLOCKS="everything", **LIMIT):
        assert done.code == 1, done.err
        assert done.out == ""
        first, then, *frames = done.err.splitlines()
        assert "stuck.py:14: holds_the_lock held the interpreter's lock for 2.25 s" in first
        assert "isolated=True" in first
        assert then.startswith("warren: ")
        assert [line for line in frames if "in look" in line], "its stack, innermost first"
        assert done.err.count("most recent call first") == 1, "nobody else's"
    warren(*COLLECT, cwd=folder).ok()


def test_a_worker_says_so_too_and_ends(folder: Path, rabbitmq, redis_server, fresh_names) -> None:  # type: ignore[no-untyped-def]
    at = {"WARREN_BROKER": rabbitmq.url, "WARREN_REDIS": redis_server.url}
    play = ("--env", "stuck.py", "--model", "scripted")
    others = [
        spawn("worker", *kind, cwd=folder, stdout=DEVNULL, stderr=DEVNULL, variables=at)
        for kind in (("agent", *play[:2]), ("model", *play))
    ]
    locks = {**at, "BLOCKS": "everything", **LIMIT}
    tool = spawn("worker", "tool", *play[:2], "--log-json", cwd=folder, variables=locks)
    try:
        enqueue = ("enqueue", "tasks.jsonl", *play, "--run", fresh_names.run)
        warren(*enqueue, cwd=folder, **at).ok()
        done = ended(tool)
    finally:
        for process in (*others, tool):
            process.kill()
            process.communicate()
    assert done.code == 1, done.err
    said = [line for line in done.err.splitlines() if line.startswith("warren: ")]
    assert "stuck.py:14: holds_the_lock held the interpreter's lock for 2.25 s" in said[0]
    assert "this worker ends" in said[1]
    assert done.err.count("most recent call first") == 1, done.err
