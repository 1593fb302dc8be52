"""The audit says OK, or exactly what is wrong and where."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sinks.audit import MAX_TOLD, audit
from sinks.parquet import ParquetFile, parts_of
from sinks.parquet_rows import write
from sinks.parts import PartFiles
from sinks.rows import row_for
from tests.support.rollouts import failed, result


def lines(*ids: int) -> bytes:
    return b"".join(row_for(result(i)).data + b"\n" for i in ids)


def changed(change: Callable[[dict[str, Any]], object]) -> bytes:
    row = json.loads(row_for(result(1)).data)
    change(row)
    return json.dumps(row).encode() + b"\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.jsonl"


def test_a_good_file_is_ok(path: Path) -> None:
    path.write_bytes(lines(1, 2, 3))
    report = audit(path, expected=[(1, 0), (2, 0), (3, 0)])
    assert (report.ok, report.rows, report.problems) == (True, 3, ())
    assert report.totals.completed == 3


def test_an_empty_file_is_ok_where_nothing_is_expected(path: Path) -> None:
    path.write_bytes(b"")
    assert audit(path).ok
    assert audit(path, expected=[(0, 0)]).problems == ("no row for task 0, repeat 0",)


def test_a_missing_file_is_said(path: Path) -> None:
    assert "x.jsonl" in audit(path).problems[0]


def test_lost_foreign_and_double_rows_are_named(path: Path) -> None:
    path.write_bytes(lines(1, 2, 1))
    report = audit(path, expected=[(1, 0), (3, 0)])
    assert report.problems == (
        f"{path}:3: rollout run-a/1/0 has a row already",
        "no row for task 3, repeat 0",
        "nobody asked for task 2, repeat 0",
    )
    assert report.rows == 2


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"\n", "not a row"),
        (b"{}\n", "not a row"),
        (b'{"reward": 1', "the last line is torn"),
        (changed(lambda r: r["warren"].update(rollout_id="run-a/9/9")), "is not run/task/repeat"),
        (changed(lambda r: r.pop("response")), "response is no response object"),
        (changed(lambda r: r.pop("responses_create_params")), "responses_create_params"),
        (
            changed(lambda r: r["response"]["output"][0].pop("generation_log_probs")),
            "response.output[0]: token fields are not all there",
        ),
        (
            changed(lambda r: r["response"]["output"][0]["generation_log_probs"].pop()),
            "as many logprobs",
        ),
        (changed(lambda r: r["warren"]["calls"].append({"path": "0"})), "two calls have one path"),
        (changed(lambda r: r["warren"].update(status="failed")), "not a row"),
        (
            changed(
                lambda r: r["warren"].update(status="failed", error={"kind": "x", "message": ""})
            ),
            "a failed row has a reward",
        ),
        (row_for(result(5, run="run-b")).data + b"\n", "belongs to run 'run-b'"),
    ],
)
def test_a_bad_row_is_named_by_its_line(path: Path, line: bytes, says: str) -> None:
    path.write_bytes(lines(0) + line)
    (problem,) = audit(path).problems
    assert problem.startswith(f"{path}:2: ")
    assert says in problem


def test_failures_in_a_file_of_their_own_are_counted(path: Path) -> None:
    failures = path.with_name("f.jsonl")
    path.write_bytes(lines(1))
    failures.write_bytes(row_for(failed(1)).data + b"\n" + row_for(failed(2)).data + b"\n")
    report = audit(path, failures=failures, expected=[(1, 0), (2, 0)])
    assert report.problems == ()
    assert (report.rows, report.superseded, report.totals.failed) == (2, 1, 1)
    failures.write_bytes(failures.read_bytes() + lines(3))
    assert "a good row among the failed ones" in audit(path, failures=failures).problems[0]


def test_problems_are_counted_beyond_those_told(path: Path) -> None:
    path.write_bytes(b"{}\n" * (MAX_TOLD + 50))
    report = audit(path)
    assert (report.problem_count, len(report.problems)) == (MAX_TOLD + 50, MAX_TOLD)


def test_missing_and_broken_parts_are_named(tmp_path: Path) -> None:
    output = PartFiles(tmp_path)
    for i in range(4):
        output.commit([row_for(result(i))])
    (tmp_path / "part-0-000000002.jsonl.zst").unlink()
    (tmp_path / "part-0-000000004.jsonl.zst").write_bytes(b"junk")
    first, second = audit(tmp_path).problems
    assert "part-0-000000003.jsonl.zst: the part before it is missing" in first
    assert "part-0-000000004.jsonl.zst: unreadable part" in second


def test_a_rollout_in_two_shards_is_found(tmp_path: Path) -> None:
    for shard in ("0", "1"):
        PartFiles(tmp_path, shard).commit([row_for(result(7))])
    (problem,) = audit(tmp_path).problems
    assert "part-1-000000001.jsonl.zst:1: rollout run-a/7/0 has a row already" in problem


def test_parquet_is_audited_with_the_parts_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    output = ParquetFile(path)
    output.commit([row_for(result(1)), row_for(failed(2))])
    output.close()
    PartFiles(parts_of(path)).commit([row_for(result(3))])
    report = audit(path, expected=[(1, 0), (2, 0), (3, 0)])
    assert report.problems == ()
    assert (report.rows, report.totals.failed) == (3, 1)
    twice = json.loads(row_for(result(1)).data)
    write(path, [twice, twice])
    assert "is in it twice" in audit(path).problems[0]
