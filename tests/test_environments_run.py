"""The built-in environments: one readable file each, and they run from end to end."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from warren import load_environment

NAMES = ("math", "search", "instructions", "workplace", "dialogue", "open_ended")


@pytest.mark.parametrize("name", NAMES)
def test_it_is_one_readable_file_with_a_dozen_tasks(name: str) -> None:
    env = load_environment(name)
    source = Path(env.source).read_text(encoding="utf-8")
    assert len(source.splitlines()) < (180 if name == "workplace" else 115)
    assert "from warren." not in source
    assert env.tasks is not None
    lines = env.tasks.read_text("utf-8").splitlines()
    assert len(lines) >= 12
    assert all("responses_create_params" in json.loads(line) for line in lines)


def collect(name: str, output: Path) -> dict[str, Any]:
    tasks = load_environment(name).tasks
    command = [sys.executable, "-m", "warren", "collect", str(tasks), "--env", name]
    command += ["--model", "scripted", "-o", str(output), "--repeats", "3", "--json", "-q"]
    done = subprocess.run(
        command,
        cwd=output.parent,
        capture_output=True,
        text=True,
        timeout=100,
        env={k: v for k, v in os.environ.items() if not k.startswith("WARREN_")},
    )
    assert done.returncode == 0, done.stderr
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary


def scores(output: Path) -> dict[tuple[int, int], float]:
    rows = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
    return {(row["_ng_task_index"], row["_ng_rollout_index"]): row["reward"] for row in rows}


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_from_end_to_end_with_mixed_outcomes(name: str, tmp_path: Path) -> None:
    first = collect(name, tmp_path / "rows.jsonl")
    assert first["completed"] == first["rollouts"] == first["tasks"] * 3, first
    assert 0.0 < first["mean_reward"] < 1.0
    rows = scores(tmp_path / "rows.jsonl")
    groups = [{rows[task, repeat] for repeat in range(3)} for task in range(first["tasks"])]
    assert sum(len(group) > 1 for group in groups) >= len(groups) / 3, "repeats differ"
    written = (tmp_path / "rows.jsonl").read_bytes()
    again = collect(name, tmp_path / "rows.jsonl")
    assert again["rollouts"] == first["rollouts"]
    assert (tmp_path / "rows.jsonl").read_bytes() == written, "nothing was left to do"
    collect(name, tmp_path / "other.jsonl")
    assert scores(tmp_path / "other.jsonl") == rows, "outcomes depend on task and repeat alone"
