"""Parquet: what comes back is what JSONL has, and no crash around the compaction loses a row."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sinks import parquet_rows
from sinks.base import OutputBroken, OutputRefused
from sinks.parquet import ParquetFile, iter_rows, parts_of, summaries
from sinks.parquet_rows import from_columns, to_columns
from sinks.rows import row_for
from tests.support.disks import FaultyDisk
from tests.support.processes import run_python
from tests.support.rollouts import failed, model_call, result, said, tokens


def decoded(made: Any) -> dict[str, Any]:
    row = json.loads(row_for(made).data)
    assert isinstance(row, dict)
    return row


def ids_of(path: Path) -> list[int]:
    return [row["warren"]["task_index"] for row in iter_rows(path)]


def test_rows_come_back_as_jsonl_has_them(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    extra = b'{"question": {"a": 1, "b": null}, "_ng_task_index": 4, "tags": ["x", 2]}'
    sent = [result(1), result(2, row=extra), failed(3), result(4, row=b"broken")]
    output = ParquetFile(path)
    output.commit([row_for(made) for made in sent[:2]])
    output.commit([row_for(made) for made in sent[2:]])
    output.close()
    assert not parts_of(path).exists()
    assert list(iter_rows(path)) == [decoded(made) for made in [*sent[:2], *sent[2:]]]
    assert [s.task_index for s in summaries(path)] == [1, 2, 3, 4]


def test_tokens_are_columns_that_a_trainer_reads_without_json(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    output = ParquetFile(path)
    output.commit([row_for(result(1))])
    output.close()
    (row,) = pq.read_table(path).to_pylist()
    assert row["prompt_token_ids"] == [[1, 2], [1, 2, 3, 4]]
    assert row["generation_token_ids"] == [[3], [5, 6]]
    assert row["generation_log_probs"] == [[-0.5], [-0.5, -0.5]]
    assert row["token_items"] == [0, 3]
    assert "token_ids" not in row["response"]
    assert (row["reward"], row["error_kind"], row["policy_version_max"]) == (1.0, None, 4)


def test_the_file_grows_over_several_runs(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    for batch in range(3):
        output = ParquetFile(path, run="run-a")
        assert len(output.ids) == batch * 2
        output.commit([row_for(result(i)) for i in range(batch * 2 + 2)])
        assert output.totals.completed == batch * 2 + 2
        output.close()
    assert ids_of(path) == list(range(6))
    with pytest.raises(OutputRefused, match="belongs to run 'run-a'"):
        ParquetFile(path, run="run-b")


def test_a_later_good_row_takes_a_failed_ones_place(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    for made in (failed(1), result(1), failed(1)):
        output = ParquetFile(path)
        output.commit([row_for(made), row_for(failed(2))])
        output.close()
    rows = {r["warren"]["task_index"]: r["warren"]["status"] for r in iter_rows(path)}
    assert rows == {1: "completed", 2: "failed"}
    assert len(ids_of(path)) == 2


def test_a_run_without_rows_makes_an_empty_file(tmp_path: Path) -> None:
    ParquetFile(tmp_path / "x.parquet").close()
    assert ids_of(tmp_path / "x.parquet") == []


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    first = ParquetFile(tmp_path / "x.parquet")
    with pytest.raises(OutputRefused, match="another process"):
        ParquetFile(tmp_path / "x.parquet")
    first.close()


def test_what_is_no_parquet_of_ours_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    path.write_bytes(b"PAR1 not really")
    with pytest.raises(OutputRefused, match=r"x\.parquet"):
        ParquetFile(path)
    assert path.read_bytes() == b"PAR1 not really"


def test_rows_survive_a_compaction_that_fails(tmp_path: Path) -> None:
    path, disk = tmp_path / "x.parquet", FaultyDisk()
    output = ParquetFile(path, disk=disk)
    output.commit([row_for(result(i)) for i in range(3)])
    disk.fail_next("fsync eio")
    with pytest.raises(OutputBroken, match="the rows are safe"):
        output.close()
    assert ids_of(path) == [0, 1, 2]
    again = ParquetFile(path)
    assert len(again.ids) == 3
    again.close()
    assert ids_of(path) == [0, 1, 2]


@pytest.mark.parametrize(
    "place",
    ["sink.after_link:1", "sink.before_rename:1", "sink.after_rename:1", "sink.after_link:2"],
)
def test_a_collector_killed_anywhere_goes_on_without_loss(tmp_path: Path, place: str) -> None:
    code = """
import sys
from pathlib import Path
from broker import crashpoints
from sinks.parquet import ParquetFile
from sinks.rows import row_for
from tests.support.rollouts import result
crashpoints.arm(sys.argv[2])
output = ParquetFile(Path(sys.argv[1]))
for batch in range(3):
    output.commit([row_for(result(batch * 2 + i)) for i in range(2)])
output.close()
"""
    path = tmp_path / "x.parquet"
    run_python(code, path, place, expect=137)
    output = ParquetFile(path)
    output.commit([row_for(result(i)) for i in range(7)])
    output.close()
    assert sorted(ids_of(path)) == list(range(7))


def test_row_groups_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_rows, "GROUP_ROWS", 2)
    path = tmp_path / "x.parquet"
    assert parquet_rows.write(path, (decoded(result(i)) for i in range(5))) == 5
    assert pq.ParquetFile(path).metadata.num_row_groups == 3


@given(
    st.lists(st.integers(-(2**40), 2**40), max_size=5),
    st.floats(-50, 0, allow_nan=False),
)
def test_any_row_comes_back_whole(prompt: list[int], logprob: float) -> None:
    call = model_call("0", [said("user", "a")], [said("assistant", "b")], tokens=tokens([1], [2]))
    row = decoded(result(calls=(call,), main="0", prompt_items=1))
    row["response"]["output"][0]["prompt_token_ids"] = prompt
    row["response"]["output"][0]["generation_log_probs"] = [logprob]
    assert from_columns(to_columns(row)) == row
