"""`--judge-model`: a run names its own judge, and a run with another judge is another run."""

import json
from pathlib import Path

import pytest

from tests.support.command import by_request, echo, provider, rows_of, warren, write_rows
from tests.support.provider import Behaviour

ENVIRONMENT = """
from warren import Environment, quality

env = Environment("essay", judge_model="scripted")
env.reward(name="kind")(quality("{answer}", {"kind": "it is friendly"}, votes=3))


@env.policy
def scripted(request):
    if request.path.startswith("verify"):
        return '{"scores": {"kind": 1}}'
    return "You are welcome."
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "essay.py").write_text(ENVIRONMENT, encoding="utf-8")
    write_rows(tmp_path / "tasks.jsonl", [{"prompt": "Write."}])
    return tmp_path


def judged_by_scores(value: int) -> Behaviour:
    text = json.dumps({"reason": "warm", "scores": {"kind": value}})
    return by_request(lambda body: echo({**body, "messages": [{"role": "user", "content": text}]}))


def test_a_run_names_its_judge_and_so_does_reverify(folder: Path) -> None:
    run = ("collect", "tasks.jsonl", "--env", "essay.py", "--model", "scripted", "-o", "rows.jsonl")
    again = ("reverify", "rows.jsonl", "--env", "essay.py", "-o", "again.jsonl")
    warren(*run, cwd=folder).ok()
    assert rows_of(folder / "rows.jsonl")[0]["reward"] == pytest.approx(0.1)
    with provider(judged_by_scores(7)) as judge:
        named = ("--judge-model", "big", "--judge-base-url", judge.url)
        other = warren(*run, *named, cwd=folder)
        assert (other.code, "its prompting is" in other.err) == (2, True), other.err
        for words, output in (((*run, "--overwrite"), "rows.jsonl"), (again, "again.jsonl")):
            warren(*words, *named, cwd=folder).ok()
            assert rows_of(folder / output)[0]["reward"] == pytest.approx(0.7)
        assert [seen.json["model"] for seen in judge.seen] == ["big"] * 6
