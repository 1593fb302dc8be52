"""Killed embedded runs go on: the hole that was found by hand, kept closed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ENVIRONMENT = '''
"""A model that takes its time and counts its calls."""
import asyncio
from pathlib import Path
from warren import Environment, PolicyRequest, Rollout

env = Environment("slow")
CALLS = Path(__file__).with_name("calls")


@env.reward
def fine(rollout: Rollout) -> float:
    return 1.0


@env.policy
async def scripted(request: PolicyRequest) -> str:
    with CALLS.open("a") as calls:
        calls.write(f"{request.rollout}\\n")
    await asyncio.sleep(0.5)
    return "hi"
'''


def test_a_collector_killed_in_the_middle_of_its_calls_goes_on_and_ends(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(ENVIRONMENT, encoding="utf-8")
    row = json.dumps({"responses_create_params": {"input": "q"}}) + "\n"
    (tmp_path / "tasks.jsonl").write_text(row * 20, encoding="utf-8")
    command = [sys.executable, "-m", "warren", "collect", "tasks.jsonl", "--env", "slow.py"]
    command += ["--model", "scripted", "-o", "out.jsonl", "--concurrency", "5", "-q"]
    calls = tmp_path / "calls"
    with subprocess.Popen(command, cwd=tmp_path) as first:
        deadline = time.monotonic() + 60
        while not calls.exists() or len(calls.read_text().splitlines()) < 8:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(first.pid, signal.SIGKILL)
    done = subprocess.run(command, cwd=tmp_path, timeout=60, check=False)
    assert done.returncode == 0
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert sorted(r["warren"]["task_index"] for r in rows) == list(range(20))
    assert {r["reward"] for r in rows} == {1.0}
    assert len(calls.read_text().splitlines()) <= 20 + 5  # repeated: only what was in flight
