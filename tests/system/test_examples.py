"""`--examples FILE`: a run's own few-shot examples, and what is wrong with a file that has none."""

import json
from pathlib import Path

import pytest

from tests.support.command import rows_of, warren

SHOT = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]


@pytest.mark.parametrize(
    "text", [json.dumps(SHOT), "\n".join(map(json.dumps, SHOT)) + "\n"], ids=["list", "lines"]
)
def test_they_stand_between_the_system_prompt_and_the_task(
    tmp_path: Path, calculator_tasks: Path, text: str
) -> None:
    (tmp_path / "shots.json").write_text(text)
    command = ("collect", calculator_tasks, "--env", "calculator", "--model", "scripted")
    rest = ("--limit", 1, "-o", "rows.jsonl", "-q")
    warren(*command, *rest, "--examples", "shots.json", cwd=tmp_path).ok()
    [row] = rows_of(tmp_path / "rows.jsonl")
    items = row["responses_create_params"]["input"]
    assert [item["role"] for item in items] == ["system", "user", "assistant", "user"]
    assert items[1:3] == SHOT
    other = warren(*command, *rest, cwd=tmp_path)
    assert other.code == 2
    assert "its prompting is" in other.err


@pytest.mark.parametrize(
    ("text", "said"),
    [("[1]", "no Responses item"), ("{nope", "Expecting"), (None, "No such file")],
)
def test_a_file_without_examples_is_named_with_what_to_write(
    tmp_path: Path, calculator_tasks: Path, text: str | None, said: str
) -> None:
    if text is not None:
        (tmp_path / "shots.json").write_text(text)
    done = warren(
        *("collect", calculator_tasks, "--env", "calculator", "--model", "scripted"),
        *("-o", "rows.jsonl", "--examples", "shots.json"),
        cwd=tmp_path,
    )
    assert done.code == 2
    assert said in done.err
    assert "shots.json" in done.err
