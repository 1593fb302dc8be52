"""The command line as it is installed, and what README.md tells people to type."""

import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest

from tests.support.command import at_once, ids_of, rows_of, warren
from tests.support.provider import FakeProvider, says
from warren.cli_commands import COMMANDS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_function(name: str) -> None:
    module, _, function = COMMANDS[name].target.partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_version_and_help_need_nothing(tmp_path: Path) -> None:
    version, collect = at_once(["--version"], ["collect", "--help"], cwd=tmp_path)
    assert re.fullmatch(r"warren \d+\.\d+\.\d+\n", version.ok().out)
    assert "WARREN_BROKER" in collect.ok().out


def test_the_demo_plays_every_environment_that_needs_no_model(tmp_path: Path) -> None:
    done = warren("demo", "--repeats", 2, "--json", cwd=tmp_path).ok()
    assert done.json["failed"] == 0
    assert 0 < done.json["mean_reward"] < 1
    assert set(done.json["pass_at"]) == {"1", "2"}
    assert "demo/calculator.jsonl" in done.json["outputs"]
    tasks = (ROOT / "environments/tasks/calculator.jsonl").read_bytes().count(b"\n")
    rows = rows_of(tmp_path / "demo/calculator.jsonl")
    assert ids_of(rows) == [(i, k) for i in range(tasks) for k in range(2)]
    assert "earlier demo" not in done.err
    again = warren("demo", "--repeats", 2, "--json", cwd=tmp_path).ok()
    assert "the rows of an earlier demo in demo/ are replaced" in again.err
    assert ids_of(rows_of(tmp_path / "demo/calculator.jsonl")) == ids_of(rows)


def test_a_new_environment_is_tried_and_collected_as_it_says(tmp_path: Path) -> None:
    made = warren("env", "init", "letters", "new", cwd=tmp_path).ok()
    assert made.out.splitlines()[0] == "wrote new/letters.py"
    said = [line.split(": ", 1)[1].strip() for line in made.err.splitlines()]
    tried = warren(*shlex.split(said[0])[1:], cwd=tmp_path).ok()
    assert tried.out.endswith("OK\n")
    warren(*shlex.split(said[1])[1:], cwd=tmp_path).ok()
    assert len(rows_of(tmp_path / "rollouts.jsonl")) == 6
    again = warren("env", "init", "letters", "new", cwd=tmp_path)
    assert (again.code, "exists already" in again.err) == (2, True)


def blocks(*languages: str) -> list[str]:
    """README.md's blocks of code in these languages."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.findall(rf"```(?:{'|'.join(languages)})\n(.*?)```", text, re.DOTALL)


def readme_commands() -> list[list[str]]:
    """What it tells people to type, word by word, without prompts and comments."""
    text = "\n".join(blocks("console", "bash", "sh")).replace("\\\n", " ")
    lines = [line.removeprefix("$ ").removeprefix(".venv/bin/") for line in text.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("warren ")]


def test_the_readmes_five_minutes_work_as_they_are_typed(
    tmp_path: Path, model: FakeProvider
) -> None:
    """Its environment, its task and its commands, on a model of ours."""
    environment = next(code for code in blocks("python") if "Environment(" in code)
    (tmp_path / "weather.py").write_text(environment, encoding="utf-8")
    task = next(code for code in blocks("json") if "responses_create_params" in code)
    (tmp_path / "tasks.jsonl").write_text(task, encoding="utf-8")
    model.default = says("19")
    collect, audit = (_first(words) for words in (("collect", "--base-url"), ("audit",)))
    collect[collect.index("--base-url") + 1] = model.url
    warren(*collect, cwd=tmp_path).ok()
    rows = rows_of(tmp_path / "rollouts.jsonl")
    assert len(rows) == len(model.seen) >= 1
    assert {row["reward"] for row in rows} == {1.0}
    assert "OK" in warren(*audit, cwd=tmp_path).ok().out


def _first(wanted: tuple[str, ...]) -> list[str]:
    """The first command of README.md with all of these words, without `warren`."""
    return next(words[1:] for words in readme_commands() if set(wanted) <= set(words))


def test_every_command_that_the_readme_shows_can_be_parsed() -> None:
    for words in readme_commands():
        name = " ".join(words[1:3])
        assert words[1] in COMMANDS or name in COMMANDS, words


def test_it_is_installed_under_its_name() -> None:
    assert (Path(sys.executable).parent / "warren").exists()
