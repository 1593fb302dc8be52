"""Directories of parts: rivals on one shard are slow, never wrong; nothing is ever skipped."""

import errno
import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sinks.audit import audit
from sinks.base import OutputBroken, OutputRefused
from sinks.files import Disk
from sinks.part_formats import PartFormat, read_part
from sinks.part_names import list_parts
from sinks.parts import OtherGeneration, PartFiles
from sinks.rows import Row, row_for
from tests.support.rollouts import failed, result


def rows(*ids: int) -> list[Row]:
    return [row_for(result(i)) for i in ids]


def ids_in(root: Path) -> list[int]:
    return [
        json.loads(line)["warren"]["task_index"]
        for part in list_parts(root)
        for line in read_part(part.path)
    ]


def names(root: Path) -> list[str]:
    return sorted(p.name for p in root.iterdir() if not p.name.startswith("."))


def test_parts_are_numbered_by_shard_and_series(tmp_path: Path) -> None:
    first, second = PartFiles(tmp_path, "0"), PartFiles(tmp_path, "1")
    first.commit(rows(1, 2))
    first.commit([*rows(3), row_for(failed(4))])
    second.commit(rows(5))
    assert names(tmp_path) == [
        "failed-0-000000001.jsonl.zst",
        "part-0-000000001.jsonl.zst",
        "part-0-000000002.jsonl.zst",
        "part-1-000000001.jsonl.zst",
    ]
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".tmp")] == []


def test_an_old_directory_keeps_its_format(tmp_path: Path) -> None:
    PartFiles(tmp_path, format_="jsonl").commit(rows(1))
    PartFiles(tmp_path).commit(rows(2))
    assert names(tmp_path) == ["part-0-000000001.jsonl", "part-0-000000002.jsonl"]
    with pytest.raises(OutputRefused, match="its parts are jsonl, not parquet; leave --format out"):
        PartFiles(tmp_path, format_="parquet")


def test_a_zombie_reads_what_its_successor_wrote(tmp_path: Path) -> None:
    zombie, successor = PartFiles(tmp_path), PartFiles(tmp_path)
    assert len(successor.commit(rows(1, 2))) == 2
    assert len(successor.commit(rows(3))) == 1
    assert [r.task_index for r in zombie.commit(rows(1, 3, 4))] == [4]
    assert zombie.commit(rows(2)) == []
    assert [r.task_index for r in successor.commit(rows(4, 5))] == [5]
    assert ids_in(tmp_path) == [1, 2, 3, 4, 5]
    assert zombie.totals.completed == 4


@given(st.lists(st.tuples(st.integers(0, 2), st.lists(st.integers(0, 9), max_size=4)), max_size=20))
def test_rivals_in_any_order_write_each_rollout_once(
    tmp_path_factory: pytest.TempPathFactory, turns: list[tuple[int, list[int]]]
) -> None:
    root = tmp_path_factory.mktemp("rivals")
    rivals = [PartFiles(root) for _ in range(3)]
    for who, ids in turns:
        rivals[who].commit(rows(*ids))
    sent = {i for _, ids in turns for i in ids}
    assert sorted(ids_in(root)) == sorted(sent)
    assert audit(root, expected=[(i, 0) for i in sent]).problems == ()


def test_rival_processes_write_each_rollout_once(tmp_path: Path) -> None:
    code = """
import random, sys
from pathlib import Path
from sinks.parts import PartFiles
from sinks.rows import row_for
from tests.support.rollouts import result
output = PartFiles(Path(sys.argv[1]))
order = list(range(40))
random.Random(int(sys.argv[2])).shuffle(order)
for i in range(0, 40, 4):
    output.commit([row_for(result(j)) for j in order[i:i + 4]])
"""
    started = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(seed)])
        for seed in range(3)
    ]
    assert [process.wait(timeout=60) for process in started] == [0, 0, 0]
    assert sorted(ids_in(tmp_path)) == list(range(40))
    assert audit(tmp_path).problems == ()


def test_a_missing_part_is_refused_by_name(tmp_path: Path) -> None:
    output = PartFiles(tmp_path)
    for i in range(3):
        output.commit(rows(i))
    (tmp_path / "part-0-000000002.jsonl.zst").unlink()
    with pytest.raises(OutputRefused, match=r"part-0-000000003\.jsonl\.zst: the part before it"):
        PartFiles(tmp_path)
    (tmp_path / "part-0-000000003.jsonl.zst").unlink()
    assert len(PartFiles(tmp_path).ids) == 1


@pytest.mark.parametrize("format_", ["jsonl.zst", "jsonl", "parquet"])
@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9])
def test_an_unreadable_part_is_refused_by_name(
    tmp_path: Path, format_: PartFormat, keep: float
) -> None:
    PartFiles(tmp_path, format_=format_).commit(rows(1, 2, 3))
    (part,) = list_parts(tmp_path)
    data = part.path.read_bytes()
    part.path.write_bytes(
        data[: int(len(data) * keep)] + (b"" if format_ != "jsonl" or keep else b"x")
    )
    with pytest.raises(OutputRefused, match=part.path.name):
        PartFiles(tmp_path)


@pytest.mark.parametrize("format_", ["jsonl.zst", "parquet"])
def test_a_flipped_bit_in_a_part_is_found(tmp_path: Path, format_: PartFormat) -> None:
    PartFiles(tmp_path, format_=format_).commit(rows(*range(20)))
    (part,) = list_parts(tmp_path)
    data = bytearray(part.path.read_bytes())
    at = len(data) // 2
    if format_ == "parquet":  # in a page, which carries a checksum
        group = pq.ParquetFile(part.path).metadata.row_group(0)
        chunk = group.column(group.num_columns - 2)
        at = (chunk.dictionary_page_offset or chunk.data_page_offset) + 1000
        assert chunk.total_compressed_size > 1100
    data[at] ^= 4
    part.path.write_bytes(data)
    if format_ != "parquet":  # of which opening reads ids and accounts alone
        with pytest.raises(OutputRefused, match=part.path.name):
            PartFiles(tmp_path)
    (problem,) = audit(tmp_path).problems
    assert problem.startswith(f"{part.path}: unreadable part")


def test_what_a_crashed_sink_left_is_swept_by_its_shard_only(tmp_path: Path) -> None:
    PartFiles(tmp_path, "0").commit(rows(1))
    for name in (".tmp-0-abc", ".tmp-1-abc"):
        (tmp_path / name).write_bytes(b"half")
    PartFiles(tmp_path, "0")
    assert not (tmp_path / ".tmp-0-abc").exists()
    assert (tmp_path / ".tmp-1-abc").exists()


class Sweeping(Disk):
    """Another sink's start removes the temporary file just before the first link of a part."""

    def __init__(self) -> None:
        self.swept = False

    def link(self, source: Path, target: Path) -> None:
        if not self.swept and target.name.startswith("part"):
            self.swept = True
            source.unlink()
        super().link(source, target)


def test_a_temporary_file_that_was_swept_is_written_again(tmp_path: Path) -> None:
    disk = Sweeping()
    assert len(PartFiles(tmp_path, disk=disk).commit(rows(1, 2))) == 2
    assert disk.swept
    assert ids_in(tmp_path) == [1, 2]


class Repeating(Disk):
    """Like NFS: the link is made, its answer is lost, the repeated request finds the name taken."""

    def link(self, source: Path, target: Path) -> None:
        super().link(source, target)
        if target.name.startswith("part"):
            super().link(source, target)


def test_a_link_whose_answer_was_lost_is_recognised_as_ours(tmp_path: Path) -> None:
    output = PartFiles(tmp_path, disk=Repeating())
    assert len(output.commit(rows(1, 2))) == 2
    assert names(tmp_path) == ["part-0-000000001.jsonl.zst"]


class Linkless(Disk):
    def link(self, source: Path, target: Path) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")


def test_a_filesystem_without_hard_links_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputRefused, match="no hard links"):
        PartFiles(tmp_path, disk=Linkless())


def test_a_directory_that_is_deleted_meanwhile_is_noticed(tmp_path: Path) -> None:
    root = tmp_path / "run"
    output = PartFiles(root)
    output.commit(rows(1))
    for path in root.iterdir():
        path.unlink()
    root.rmdir()
    with pytest.raises(OutputBroken):
        output.commit(rows(2))


def test_another_generation_is_refused(tmp_path: Path) -> None:
    PartFiles(tmp_path, generation="g1").commit(rows(1))
    with pytest.raises(OtherGeneration):
        PartFiles(tmp_path, generation="g2")
    assert len(PartFiles(tmp_path, generation="g1").ids) == 1


def test_a_good_row_supersedes_a_failed_one_over_restarts(tmp_path: Path) -> None:
    PartFiles(tmp_path).commit([row_for(failed(1)), row_for(failed(2))])
    again = PartFiles(tmp_path)
    assert again.commit([row_for(failed(1))]) == []
    assert len(again.commit(rows(1))) == 1
    for output in (again, PartFiles(tmp_path)):
        assert (output.totals.completed, output.totals.failed) == (1, 1)
        assert len(output.ids) == 2
    report = audit(tmp_path, expected=[(1, 0), (2, 0)])
    assert report.problems == ()
    assert (report.rows, report.superseded) == (2, 1)
