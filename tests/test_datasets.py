"""Datasets are read as streams, and every bad row is found before anything is published."""

import contextlib
import gzip
import hashlib
import json
import os
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from producers import checks, datasets
from producers.checks import check, good_lines
from producers.pairs import Pairs

COUNTER = {
    "responses_create_params": {
        "input": [{"role": "user", "content": "add 1 then add 2 then get the count"}],
        "tools": [
            {
                "type": "function",
                "name": "increment_counter",
                "description": "",
                "strict": True,
                "parameters": {
                    "type": "object",
                    "properties": {"count": {"type": "integer", "description": ""}},
                    "required": ["count"],
                    "additionalProperties": False,
                },
            }
        ],
        "parallel_tool_calls": False,
        "temperature": 1.0,
        "max_output_tokens": 2048,
        "metadata": {"extra_body": '{"seed":3}'},
    },
    "agent_ref": {
        "type": "responses_api_agents",
        "name": "example_session_state_simple_agent",
    },
    "initial_count": 3,
    "expected_count": 6,
}
MCQA = {
    "responses_create_params": {
        "input": [{"role": "user", "content": "Which planet is red?\nA: Mars\nB: Venus"}]
    },
    "options": [{"A": "Mars"}, {"B": "Venus"}],
    "expected_answer": "A",
    "grading_mode": "strict_single_letter_boxed",
    "uuid": "4b1d",
}
MATH = {
    "responses_create_params": {"input": "What is 4 * 8?", "top_p": 1, "stream": False},
    "question": "What is 4 * 8?",
    "expected_answer": "32",
    "_ng_task_index": 7,
}
WORKPLACE = {
    "responses_create_params": {
        "input": [
            {"role": "system", "content": "Today is 2026-11-20."},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
            {"type": "reasoning", "id": "rs_1", "summary": []},
            {
                "type": "function_call",
                "call_id": "call_1",
                "name": "email_search",
                "arguments": '{"query":"x"}',
                "prompt_token_ids": [1, 2],
            },
            {"type": "function_call_output", "call_id": "call_1", "output": "[]"},
        ],
        "tools": [{"type": "function", "name": "email_search", "parameters": {}}],
        "tool_choice": "auto",
        "reasoning": None,
        "instructions": None,
    },
    "ground_truth": [{"name": "email_search", "arguments": "{}"}],
    "category": "workbench_email",
    "environment_name": "workbench",
}
GYM_ROWS = [COUNTER, MCQA, MATH, WORKPLACE]


def dataset(folder: Path, *rows: object, name: str = "tasks.jsonl") -> Path:
    path = folder / name
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def params(**fields: Any) -> dict[str, Any]:
    return {"responses_create_params": fields}


def test_the_rows_of_nemo_gym_pass_unchanged(tmp_path: Path) -> None:
    path = dataset(tmp_path, *GYM_ROWS)
    report = check(path)
    assert (report.tasks, report.bad_rows) == (4, 0)
    assert [line.raw.decode() for line in good_lines(report)] == [json.dumps(r) for r in GYM_ROWS]


def test_an_index_is_a_line_though_blank_lines_are_no_tasks(tmp_path: Path) -> None:
    path = tmp_path / "tasks.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b'{"prompt":"a"}\r\n\n  \t\n{"prompt":"b"}')
    lines = list(datasets.read_lines(path))
    assert [(line.index, line.line_number) for line in lines] == [(0, 1), (3, 4)]
    assert lines[0].raw == b'{"prompt":"a"}'
    assert check(path).tasks == 2


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed_datasets_read_as_plain_ones(tmp_path: Path, suffix: str) -> None:
    plain = dataset(tmp_path, *GYM_ROWS * 50)
    pack = gzip.compress if suffix == ".gz" else zstandard.ZstdCompressor().compress
    half = len(plain.read_bytes()) // 2
    packed = tmp_path / f"packed.jsonl{suffix}"  # two members, as `cat a.gz b.gz` makes
    packed.write_bytes(pack(plain.read_bytes()[:half]) + pack(plain.read_bytes()[half:]))
    assert list(datasets.read_lines(packed)) == list(datasets.read_lines(plain))
    assert check(packed).sha256 == hashlib.sha256(plain.read_bytes()).hexdigest()


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_torn_compressed_dataset_is_an_error_not_an_end(tmp_path: Path, suffix: str) -> None:
    text = b"".join(b'{"prompt":"%d"}\n' % i for i in range(10_000))
    pack = gzip.compress if suffix == ".gz" else zstandard.ZstdCompressor().compress
    torn = tmp_path / f"torn.jsonl{suffix}"
    torn.write_bytes(pack(text)[:-9])
    with pytest.raises(datasets.BadDataset, match=r"torn\.jsonl.*:\d+: "):
        check(torn)


@pytest.mark.parametrize("name", ["missing.jsonl", "."])
def test_a_dataset_that_cannot_be_opened_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(datasets.BadDataset, match=r"No such file|Is a directory"):
        check(tmp_path / name)


BAD_ROWS: list[tuple[object, str]] = [
    ("{", "not JSON"),
    ("[1]", "a row is a JSON object, this is a list"),
    ('{"prompt": NaN}', "NaN is no JSON number"),
    ('{"prompt": 1e999}', "too large"),
    ("[" * 100_000, "nested too deep"),
    ('{"prompt": "\\ud800"}', "surrogate"),
    ({"question": "?"}, "has no `responses_create_params`"),
    ({"prompt": ["?"]}, "`prompt` is a list, not text"),
    ({"prompt": "?", "messages": []}, "both `prompt` and `messages`"),
    ({"messages": "?"}, "`messages` is text"),
    ({"messages": [{"role": "assistant", "tool_calls": []}]}, "messages.0"),
    ({"prompt": ""}, "is empty"),
    ({"messages": []}, "is empty"),
    ({"responses_create_params": "?"}, "is text, not an object"),
    (params(temperature=1.0), "has no `input`"),
    (params(input=None), "has no `input`"),
    (params(input=7), "responses_create_params.input"),
    (params(input=[{"content": "?"}]), "responses_create_params.input.0: an item is an object"),
    (params(input=[{"role": "user"}]), "a message has a `role` and a `content`"),
    (params(input="?", max_tokens=3), "responses_create_params.max_tokens: unknown key"),
    (params(input="?", stream=True), "responses_create_params.stream"),
    (params(input="?", temperature="hot"), "responses_create_params.temperature"),
    (params(input="?", metadata={"seed": 3}), "responses_create_params.metadata.seed"),
    (params(input="?", tools=[{"type": "function", "function": {}}]), "tools.0: a function tool"),
    (params(input="?", text={"big": 2**70}), "cannot be sent"),
    ({"prompt": "?", "_ng_task_index": -1}, "_ng_task_index is not"),
    ({"prompt": "?", "_ng_rollout_index": True}, "_ng_rollout_index is not"),
]


@pytest.mark.parametrize(("row", "reason"), BAD_ROWS)
def test_a_bad_row_is_named_with_its_line_and_reason(
    tmp_path: Path, row: object, reason: str
) -> None:
    report = check(dataset(tmp_path, MCQA, row, MATH))
    assert (report.tasks, report.bad_rows) == (2, 1)
    assert reason in report.problems[0].reason
    assert "tasks.jsonl:2: " in report.describe()
    assert [line.index for line in good_lines(report)] == [0, 2]


def test_text_that_is_not_utf8_is_bad(tmp_path: Path) -> None:
    path = tmp_path / "tasks.jsonl"
    path.write_bytes(b'{"prompt": "\xff"}\n')
    assert check(path).problems[0].reason == "not UTF-8 at byte 12"


def test_the_first_twenty_problems_are_shown_and_all_are_counted(tmp_path: Path) -> None:
    report = check(dataset(tmp_path, *["{"] * 30))
    assert len(report.problems) == 20
    assert report.bad_rows == 30
    assert report.describe().endswith("tasks.jsonl: 30 rows are bad")


def test_a_row_above_the_limit_is_bad_and_never_held_whole(tmp_path: Path) -> None:
    path = tmp_path / "tasks.jsonl"
    with path.open("wb") as file:
        file.write(b'{"prompt": "')
        for _ in range(64):
            file.write(b"x" * 1024 * 1024)
        file.write(b'"}\n{"prompt": "ok"}\n')
    tracemalloc.start()
    report = check(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert report.problems[0].reason == "longer than 4194304 bytes"
    assert report.tasks == 1
    assert peak < 24 * 1024 * 1024


def test_a_prompt_outside_is_put_where_nemo_gym_has_it(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "hi"}]
    path = dataset(tmp_path, {"prompt": "?", "answer": "é"}, {"messages": messages})
    first, second = (json.loads(line.raw) for line in good_lines(check(path)))
    assert first == {"prompt": "?", "answer": "é", **params(input="?")}
    assert second == {"messages": messages, **params(input=messages)}


def test_a_limit_counts_good_rows_and_the_hash_is_of_the_whole_file(tmp_path: Path) -> None:
    path = dataset(tmp_path, MCQA, "{", MATH, COUNTER)
    report = check(path, limit=2)
    assert [line.index for line in good_lines(report)] == [0, 2]
    assert report.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert list(good_lines(check(path, limit=0))) == []


def test_tools_that_the_environment_lacks_are_bad_with_a_suggestion(tmp_path: Path) -> None:
    report = check(dataset(tmp_path, COUNTER), tools=["increment_count", "get"])
    assert "unknown tool 'increment_counter', did you mean 'increment_count'?" in report.describe()
    assert check(dataset(tmp_path, COUNTER), tools=["increment_counter"]).tasks == 1


def test_identical_lines_are_separate_tasks(tmp_path: Path) -> None:
    assert check(dataset(tmp_path, MCQA, MCQA)).tasks == 2


def indexed(task: int | None, rollout: int | None) -> dict[str, Any]:
    given = {"_ng_task_index": task, "_ng_rollout_index": rollout}
    return {"prompt": "?", **{k: v for k, v in given.items() if v is not None}}


def test_equal_pairs_of_given_indices_are_bad(tmp_path: Path) -> None:
    rows = [indexed(5, 0), indexed(5, 1), indexed(5, 0)]
    report = check(dataset(tmp_path, *rows))
    assert report.problems[0].line_number == 3
    assert "_ng_task_index 5 and _ng_rollout_index as line 1" in report.problems[0].reason
    assert [line.index for line in good_lines(report)] == [0, 1]


def test_a_given_rollout_index_cannot_be_repeated(tmp_path: Path) -> None:
    report = check(dataset(tmp_path, indexed(5, 0)), repeats=2)
    assert "2 repeats" in report.problems[0].reason


Index = st.none() | st.integers(0, 6)


@given(rows=st.lists(st.tuples(Index, Index), max_size=12), repeats=st.integers(1, 3))
def test_rows_that_are_left_never_share_a_pair(
    rows: list[tuple[int | None, int | None]], repeats: int
) -> None:
    with Pairs(repeats) as pairs:
        for index, (task, rollout) in enumerate(rows):
            pairs.add(index, task, rollout)
        clashes = list(pairs.clashes())

    def wanted(index: int) -> set[tuple[int, int]]:
        task, rollout = rows[index]
        repeats_of = range(repeats) if rollout is None else [rollout]
        return {(index if task is None else task, r) for r in repeats_of}

    assert all(wanted(later) & wanted(earlier) for later, earlier, _ in clashes)
    good = set(range(len(rows))) - {clash.later for clash in clashes}
    assert len(set().union(*map(wanted, good))) == sum(len(wanted(index)) for index in good)


def test_pairs_are_found_across_spilled_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("producers.pairs._RUN_ENTRIES", 3)
    monkeypatch.setattr("producers.pairs._BLOCK_ENTRIES", 2)
    with Pairs(1) as pairs:
        for index in range(20):
            pairs.add(index, index % 19, 0)
        assert [tuple(clash) for clash in pairs.clashes()] == [(19, 0, 0)]


def test_piped_input_is_kept_beside_the_output(tmp_path: Path) -> None:
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    writer = threading.Thread(target=lambda: fifo.write_bytes(b'{"prompt":"a"}\n'))
    writer.start()
    assert datasets.is_stream(str(fifo))
    kept = datasets.spool(str(fifo), tmp_path / "out.jsonl")
    writer.join(timeout=10)
    assert kept == tmp_path / "out.jsonl.input.jsonl"
    assert check(kept).tasks == 1


def test_only_what_can_be_read_once_is_a_stream(tmp_path: Path) -> None:
    assert datasets.is_stream("-")
    assert not datasets.is_stream(str(dataset(tmp_path, MCQA)))
    assert not datasets.is_stream("missing.jsonl")


@given(st.binary(max_size=200))
def test_no_line_whatever_it_holds_breaks_the_check(raw: bytes) -> None:
    with contextlib.suppress(checks.BadRow):
        checks.check_row(checks.parse(raw))
