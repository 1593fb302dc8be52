"""Secrets, from the outside: from files, and nowhere else afterwards, whatever a provider says."""

import json
from pathlib import Path

import pytest

from tests.support.command import asked, rows_of, warren, write_rows
from tests.support.provider import FakeProvider, repeats_headers, says

KEY = "odd/key+hunter2="
TOML = """
[models.m]
base_urls = ["{url}"]
api_key_file = "key"
{how}
"""


@pytest.mark.parametrize(
    "how", ["api = 'chat'", "api = 'vllm'", "api = 'responses'", "azure.api_version = '1'"]
)
def test_a_key_from_a_file_is_sent_and_in_no_log_error_or_row(
    tmp_path: Path, model: FakeProvider, moody: Path, how: str
) -> None:
    """Nor is it in the journal, which lies beside the rows."""
    model.default = repeats_headers(401)
    model.script = [repeats_headers(200), repeats_headers(500)]
    model.other["/v1/models"] = says("anything")
    (tmp_path / "key").write_text(f"{KEY}\n", encoding="utf-8")
    toml = TOML.format(url=model.url, how=how)
    (tmp_path / "warren.toml").write_text(toml, encoding="utf-8")
    tasks = write_rows(tmp_path / "t.jsonl", [asked("hi"), asked("?")])
    done = warren(
        *("collect", tasks, "--env", moody, "--model", "m", "-o", "x.jsonl", "--json"),
        *("--log-level", "debug", "--failures", "f.jsonl"),
        cwd=tmp_path,
    )
    assert done.ok().json["failed"] == 2
    assert model.seen, done.err
    for seen in model.seen:
        assert KEY in (seen.headers.get("authorization", "") + seen.headers.get("api-key", ""))
    for row in rows_of(tmp_path / "f.jsonl"):
        assert "***" in json.dumps(row["warren"]["error"]), row["warren"]["error"]
    (tmp_path / "key").unlink()
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 3
    for text in (done.out.encode(), done.err.encode(), *written):
        assert b"hunter2" not in text


def test_a_key_file_that_is_not_there_is_wrong_usage(
    tmp_path: Path, model: FakeProvider, calculator_tasks: Path
) -> None:
    done = warren(
        *("collect", calculator_tasks, "--env", "calculator", "--model", "m", "-o", "x.jsonl"),
        *("--base-url", model.url, "--api-key-file", "nowhere"),
        cwd=tmp_path,
    )
    assert done.code == 2
    assert "the API key of model 'm': cannot read nowhere: No such file" in done.err
    assert model.seen == []
