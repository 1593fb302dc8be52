"""One JSONL file: locked, repaired when torn, refused when it is not ours, retried apart."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sinks.base import OutputBroken, OutputFull, OutputRefused
from sinks.files import Disk
from sinks.jsonl import JsonlFile, remove_failed
from sinks.rows import Row, row_for
from tests.support.disks import FaultyDisk
from tests.support.processes import run_python
from tests.support.rollouts import failed, result


def rows(*ids: int, repeat: int = 0) -> list[Row]:
    return [row_for(result(i, repeat)) for i in ids]


def ids_in(path: Path) -> list[int]:
    return [json.loads(line)["warren"]["task_index"] for line in path.read_bytes().splitlines()]


def test_rows_are_written_once(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    output = JsonlFile(path)
    assert [r.task_index for r in output.commit(rows(1, 2, 1))] == [1, 2]
    assert [r.task_index for r in output.commit(rows(2, 3))] == [3]
    output.close()
    again = JsonlFile(path)
    assert again.commit(rows(1, 2, 3)) == []
    assert sorted(again.ids) == [(1, 0), (2, 0), (3, 0)]
    assert again.totals.completed == 3
    assert again.totals == output.totals
    again.close()
    assert ids_in(path) == [1, 2, 3]


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    first = JsonlFile(tmp_path / "x.jsonl")
    with pytest.raises(OutputRefused, match="another process"):
        JsonlFile(tmp_path / "x.jsonl")
    first.close()
    JsonlFile(tmp_path / "x.jsonl").close()


def test_a_torn_last_line_is_cut_off_wherever_it_was_torn(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    whole = b"".join(row.data + b"\n" for row in rows(1, 2))
    second = len(rows(1)[0].data) + 1
    for cut in (second + 1, second + 500, len(whole) - 2):
        path.write_bytes(whole[:cut])
        output = JsonlFile(path)
        assert list(output.ids) == [(1, 0)]
        assert [r.task_index for r in output.commit(rows(1, 2))] == [2]
        output.close()
        assert path.read_bytes() == whole


def test_a_last_row_that_only_lost_its_newline_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(rows(1)[0].data)
    output = JsonlFile(path)
    assert output.commit(rows(1)) == []
    output.close()
    assert path.read_bytes() == rows(1)[0].data + b"\n"


def test_a_row_that_another_hand_has_doubled_is_taken_out(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    output = JsonlFile(path)
    output.commit(rows(1, 2, 3))
    totals = output.totals
    output.close()
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[1], *lines, lines[0], b"{"]))
    again = JsonlFile(path)
    assert again.totals == totals
    with pytest.raises(OutputRefused):
        JsonlFile(path)  # the file in its place is locked too
    again.commit(rows(1, 4))
    again.close()
    assert ids_in(path) == [2, 1, 3, 4]
    assert [p.name for p in tmp_path.iterdir()] == ["x.jsonl"]


def test_a_torn_line_longer_than_a_block_is_found(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(rows(1)[0].data + b"\n" + b'{"a": "' + b"x" * 300_000)
    JsonlFile(path).close()
    assert ids_in(path) == [1]


@pytest.mark.parametrize("line", [b"", b"{", b"[]", b'{"reward": 1.0}', b"\x00\x00"])
def test_a_malformed_line_is_refused_with_its_number(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "x.jsonl"
    one, two = rows(1, 2)
    before = b"\n".join([one.data, line, two.data, b""])
    path.write_bytes(before)
    with pytest.raises(OutputRefused, match=r"x\.jsonl:2: "):
        JsonlFile(path)
    assert path.read_bytes() == before


def test_another_runs_rows_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    output = JsonlFile(path, run="run-a")
    output.commit(rows(1))
    output.close()
    with pytest.raises(OutputRefused, match="belongs to run 'run-a'"):
        JsonlFile(path, run="run-b")


@pytest.mark.parametrize("fault", ["short", "enospc", "fsync enospc"])
def test_a_full_disk_leaves_nothing_of_the_batch(tmp_path: Path, fault: str) -> None:
    disk = FaultyDisk()
    path = tmp_path / "x.jsonl"
    output = JsonlFile(path, disk=disk)
    output.commit(rows(1))
    disk.fail_next(fault)
    with pytest.raises(OutputFull):
        output.commit(rows(2, 3))
    assert ids_in(path) == [1]
    assert [r.task_index for r in output.commit(rows(2, 3))] == [2, 3]
    output.close()
    assert ids_in(path) == [1, 2, 3]


@pytest.mark.parametrize("fault", ["eio", "fsync eio", "short, truncate eio"])
def test_a_broken_disk_is_a_crash_and_the_file_is_repaired_at_the_next_start(
    tmp_path: Path, fault: str
) -> None:
    disk = FaultyDisk()
    path = tmp_path / "x.jsonl"
    output = JsonlFile(path, disk=disk)
    output.commit(rows(1))
    disk.fail_next(*fault.split(", "))
    with pytest.raises(OutputBroken):
        output.commit(rows(2, 3))
    output.close()
    again = JsonlFile(path)
    again.commit(rows(1, 2, 3))
    again.close()
    assert ids_in(path) == [1, 2, 3]


def test_a_file_that_is_deleted_meanwhile_is_noticed(tmp_path: Path) -> None:
    output = JsonlFile(tmp_path / "x.jsonl")
    (tmp_path / "x.jsonl").unlink()
    with pytest.raises(OutputBroken, match="deleted"):
        output.commit(rows(1))
    output.close()


def test_a_file_that_somebody_else_changes_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    output = JsonlFile(path)
    output.commit(rows(1))
    with path.open("ab") as other:
        other.write(b"junk")
    with pytest.raises(OutputBroken, match="somebody else"):
        output.commit(rows(2))
    output.close()


def test_a_really_full_disk_loses_nothing(tmp_path: Path) -> None:
    code = """
import resource, sys
from pathlib import Path
from sinks.base import OutputFull
from sinks.jsonl import JsonlFile
from tests.support.rollouts import result
from sinks.rows import row_for
path = Path(sys.argv[1])
batch = [row_for(result(i)) for i in range(5)]
output = JsonlFile(path)
output.commit(batch[:2])
size = path.stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, resource.RLIM_INFINITY))
try:
    output.commit(batch[2:])
except OutputFull:
    assert path.stat().st_size == size
else:
    raise SystemExit("written into a full disk")
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert len(output.commit(batch)) == 3
"""
    run_python(code, tmp_path / "x.jsonl")
    assert ids_in(tmp_path / "x.jsonl") == [0, 1, 2, 3, 4]


def test_failed_rows_in_a_file_of_their_own_give_way_to_good_ones(tmp_path: Path) -> None:
    path, failures = tmp_path / "x.jsonl", tmp_path / "x_failures.jsonl"
    output = JsonlFile(path, failures=failures)
    output.commit([row_for(failed(1)), row_for(failed(2)), *rows(3)])
    assert (ids_in(path), ids_in(failures)) == ([3], [1, 2])
    assert output.commit([row_for(failed(1)), row_for(failed(3))]) == []
    assert [r.task_index for r in output.commit(rows(1))] == [1]
    assert len(output.ids) == 3
    assert (output.totals.completed, output.totals.failed) == (2, 1)
    totals = output.totals
    output.close()
    again = JsonlFile(path, failures=failures)
    assert again.commit([*rows(1, 3), row_for(failed(2))]) == []
    assert (again.totals.completed, again.totals.failed) == (2, 1)
    assert again.totals.failed_by_kind == totals.failed_by_kind == {"tool": 1}
    again.close()


def test_a_failed_row_inline_is_final(tmp_path: Path) -> None:
    output = JsonlFile(tmp_path / "x.jsonl")
    output.commit([row_for(failed(1))])
    assert output.commit(rows(1)) == []
    output.close()
    apart = JsonlFile(tmp_path / "x.jsonl", failures=tmp_path / "f.jsonl")
    assert apart.commit(rows(1)) == []
    apart.close()


def test_inline_failed_rows_can_be_taken_out_to_be_run_again(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    output = JsonlFile(path)
    output.commit([*rows(1), row_for(failed(2)), *rows(3)])
    with pytest.raises(OutputRefused):
        remove_failed(path)
    output.close()
    assert remove_failed(path) == 1
    assert ids_in(path) == [1, 3]
    again = JsonlFile(path)
    assert [r.task_index for r in again.commit(rows(2))] == [2]
    again.close()


Batches = st.lists(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 1), st.booleans()), max_size=6),
    max_size=6,
)


@given(Batches, st.booleans(), st.integers(0, 10_000))
def test_any_batches_with_any_torn_end_leave_each_rollout_once(
    tmp_path_factory: pytest.TempPathFactory,
    batches: list[list[tuple[int, int, bool]]],
    apart: bool,
    torn: int,
) -> None:
    path = tmp_path_factory.mktemp("rows") / "x.jsonl"
    failures = path.with_name("f.jsonl") if apart else None
    sent: set[tuple[int, int]] = set()
    for batch in batches:
        output = JsonlFile(path, failures=failures)
        made = [row_for((failed if bad else result)(task, rep)) for task, rep, bad in batch]
        output.commit(made)
        output.commit(made)
        sent |= {(task, rep) for task, rep, _ in batch}
        assert set(output.ids) == sent
        output.close()
        with path.open("ab") as file:
            file.write(row_for(result(99)).data[: torn % 2000])
    final = JsonlFile(path, failures=failures)
    assert set(final.ids) == sent
    total = final.totals
    assert total.completed + total.failed == len(sent)
    final.close()
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    ids = [(r["warren"]["task_index"], r["warren"]["repeat_index"]) for r in lines]
    assert len(ids) == len(set(ids))


def test_the_disk_does_what_it_says(tmp_path: Path) -> None:
    disk, path = Disk(), tmp_path / "a"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    assert disk.write(fd, b"a", b"bc") == 3
    assert disk.write(fd, *[b"d"] * 5000) == 5000  # more than the kernel takes at once
    disk.truncate(fd, 1)
    disk.fsync(fd)
    os.close(fd)
    disk.link(path, tmp_path / "b")
    with pytest.raises(FileExistsError):
        disk.link(path, tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"a"
