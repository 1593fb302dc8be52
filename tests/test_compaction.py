"""Merging small parts: each rollout is there once, for strangers too, whoever acts or dies when."""

from collections.abc import Callable, Iterator
from pathlib import Path, PosixPath
from typing import Final

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sinks.audit import audit
from sinks.base import OutputRefused
from sinks.files import Disk
from sinks.part_formats import PartFormat
from sinks.part_reading import committed, committed_lines
from sinks.parts import PartFiles
from sinks.rows import Row, row_for
from tests.support.disks import FaultyDisk
from tests.support.part_world import SteppingDisk, Stopped, doubled, names, outside, stop
from tests.support.processes import run_python
from tests.support.rollouts import failed, result

FORMATS: Final[tuple[PartFormat, ...]] = ("jsonl.zst", "parquet")


@pytest.fixture(params=FORMATS)
def format_(request: pytest.FixtureRequest) -> PartFormat:
    found: PartFormat = request.param
    return found


def rows(*ids: int) -> list[Row]:
    return [row_for(result(i)) for i in ids]


def opened(root: Path, format_: PartFormat, disk: Disk | None = None, block: int = 3) -> PartFiles:
    return PartFiles(root, format_=format_, block=block, disk=disk)


def filled(root: Path, format_: PartFormat, parts: int, disk: Disk | None = None) -> PartFiles:
    output = opened(root, format_, disk)
    for i in range(parts):
        output.commit(rows(2 * i, 2 * i + 1))
    return output


def tasks(root: Path) -> list[int]:
    return [task for task, _ in outside(root)]


def test_whole_blocks_become_one_part_each_in_their_order(
    tmp_path: Path, format_: PartFormat
) -> None:
    output = filled(tmp_path, format_, 7)
    before = [line for _, _, line in committed_lines(tmp_path)]
    output.tidy()
    assert len(names(tmp_path)) == 5  # a bounded piece of work a call
    output.tidy()
    output.tidy()
    assert names(tmp_path) == [
        f"part-0-000000001-000000003.{format_}",
        f"part-0-000000004-000000006.{format_}",
        f"part-0-000000007.{format_}",
    ]
    assert [line for _, _, line in committed_lines(tmp_path)] == before
    assert tasks(tmp_path) == list(range(14))
    again = opened(tmp_path, format_)
    assert len(again.ids) == 14
    assert again.totals == output.totals
    assert again.commit(rows(*range(14))) == []
    assert len(again.commit(rows(13, 14))) == 1
    assert names(tmp_path)[-1] == f"part-0-000000008.{format_}"
    assert audit(tmp_path, expected=[(i, 0) for i in range(15)]).problems == ()


def test_failed_rows_are_merged_apart(tmp_path: Path, format_: PartFormat) -> None:
    output = opened(tmp_path, format_)
    for i in range(3):
        output.commit([row_for(failed(i))])
    output.tidy()
    assert names(tmp_path) == [f"failed-0-000000001-000000003.{format_}"]
    assert len(opened(tmp_path, format_).commit(rows(1))) == 1
    report = audit(tmp_path, expected=[(0, 0), (1, 0), (2, 0)])
    assert (report.problems, report.superseded) == ((), 1)


def test_merged_parquet_has_large_row_groups(tmp_path: Path) -> None:
    filled(tmp_path, "parquet", 3).tidy()
    (path,) = tmp_path.glob("part-*")
    assert pq.ParquetFile(path).metadata.num_row_groups == 1


def test_parts_that_are_not_small_stay(tmp_path: Path, format_: PartFormat) -> None:
    PartFiles(tmp_path, format_=format_, block=2)
    output = PartFiles(tmp_path, format_=format_, block_bytes=100)
    for i in range(4):
        output.commit(rows(i))
    output.tidy()
    assert len(names(tmp_path)) == 4


def test_all_sinks_of_a_directory_have_the_blocks_of_the_first(tmp_path: Path) -> None:
    opened(tmp_path, "jsonl.zst", block=2)
    output = opened(tmp_path, "jsonl.zst", block=3)
    for i in range(2):
        output.commit(rows(i))
    output.tidy()
    assert names(tmp_path) == ["part-0-000000001-000000002.jsonl.zst"]


def test_a_zombie_gives_up_a_number_that_is_free_because_its_part_was_merged(
    tmp_path: Path, format_: PartFormat
) -> None:
    zombie = opened(tmp_path, format_)
    filled(tmp_path, format_, 3).tidy()
    assert [r.task_index for r in zombie.commit(rows(0, 5, 9))] == [9]
    assert names(tmp_path)[0] == f"part-0-000000001-000000003.{format_}"
    assert names(tmp_path)[1:] == [f"part-0-000000004.{format_}"]
    assert sorted(tasks(tmp_path)) == [0, 1, 2, 3, 4, 5, 9]


def test_two_that_merge_one_block_at_once_make_one_part(
    tmp_path: Path, format_: PartFormat
) -> None:
    for step in range(1, 9):
        root, disk = tmp_path / str(step), SteppingDisk()
        first = filled(root, format_, 3, disk)
        second = opened(root, format_)
        disk.at(step, second.tidy)
        first.tidy()
        assert names(root) == [f"part-0-000000001-000000003.{format_}"]
        assert tasks(root) == list(range(6))


@pytest.mark.parametrize("read", range(1, 5))
def test_who_reads_while_parts_are_merged_reads_each_row_once(
    tmp_path: Path, format_: PartFormat, read: int
) -> None:
    output = filled(tmp_path, format_, 4)
    reading = committed(tmp_path)
    found = [line for _ in range(read) for line in next(reading)]
    output.tidy()
    found += [line for lines in reading for line in lines]
    ids = [line for _, _, line in found]
    assert ids == [line for _, _, line in committed_lines(tmp_path)]
    assert len(ids) == 8


def test_who_opens_while_parts_are_merged_knows_all_of_them(
    tmp_path: Path, format_: PartFormat
) -> None:
    first, disk = filled(tmp_path, format_, 3), SteppingDisk()
    disk.at(5, first.tidy)  # when the parts have been listed, and are to be read
    assert len(opened(tmp_path, format_, disk).ids) == 6
    assert len(names(tmp_path)) == 1


class Slow(PosixPath):
    """The first look takes so long that meanwhile something happens; what came then is not seen."""

    during: Callable[[], object] | None = None

    def iterdir(self) -> Iterator[Path]:  # type: ignore[override]
        found = list(super().iterdir())
        if self.during is not None:
            meanwhile, self.during = self.during, None
            meanwhile()
        return (path for path in found if path.exists())


def test_a_look_that_misses_the_merged_part_is_repeated(tmp_path: Path) -> None:
    output, slow = filled(tmp_path, "jsonl.zst", 3), Slow(tmp_path)
    slow.during = output.tidy
    assert len(list(committed_lines(slow))) == 6


@pytest.mark.parametrize("fault", ["short", "enospc", "fsync enospc", "link enospc"])
def test_a_full_disk_puts_merging_off(tmp_path: Path, format_: PartFormat, fault: str) -> None:
    disk = FaultyDisk()
    output = filled(tmp_path, format_, 3, disk)
    disk.fail_next(fault)
    output.tidy()
    assert len(names(tmp_path)) == 3
    output.tidy()
    assert len(names(tmp_path)) == 3  # not again with every batch
    for i in (10, 11, 12):
        output.commit(rows(i))
    output.tidy()
    output.tidy()
    assert len(names(tmp_path)) == 2
    assert tasks(tmp_path) == [*range(6), 10, 11, 12]


def test_a_part_that_is_not_whole_stays_for_the_audit_to_name(
    tmp_path: Path, format_: PartFormat
) -> None:
    output = filled(tmp_path, format_, 3)
    torn = tmp_path / f"part-0-000000002.{format_}"
    torn.write_bytes(torn.read_bytes()[:-9])
    output.tidy()
    assert len(names(tmp_path)) == 3
    (problem,) = audit(tmp_path).problems
    assert problem.startswith(f"{torn}: unreadable part")


def test_a_merged_part_that_somebody_removed_is_missed(tmp_path: Path, format_: PartFormat) -> None:
    filled(tmp_path, format_, 4).tidy()
    (tmp_path / f"part-0-000000001-000000003.{format_}").unlink()
    with pytest.raises(OutputRefused, match=r"000000004[^:]*: the part before it"):
        opened(tmp_path, format_)
    assert not audit(tmp_path).ok


@pytest.mark.parametrize("place", ["sink.after_merge", "sink.amid_removal:2"])
def test_killed_between_the_merge_and_the_removal_the_next_one_ends_it(
    tmp_path: Path, format_: PartFormat, place: str
) -> None:
    root = tmp_path / "x"
    filled(root, format_, 3)
    code = f"""
from pathlib import Path
from broker import crashpoints
from sinks.parts import PartFiles
crashpoints.arm({place!r})
PartFiles(Path({str(root)!r})).tidy()
"""
    run_python(code, expect=137)
    assert doubled(outside(root))  # as strangers see it, until a sink opens it
    report = audit(root, expected=[(i, 0) for i in range(6)])
    assert (report.problems, report.void > 0) == ((), True)
    assert len(opened(root, format_).ids) == 6
    assert names(root) == [f"part-0-000000001-000000003.{format_}"]
    assert tasks(root) == list(range(6))


Commit = st.tuples(
    st.just("commit"), st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=3)
)
Other = st.tuples(st.sampled_from(["tidy", "open"]), st.lists(st.nothing(), max_size=0))
Action = st.tuples(st.integers(0, 1), st.one_of(Commit, Commit, Other))
Turn = st.tuples(Action, st.integers(0, 8), st.one_of(st.none(), Action))
"""What one does; at which step of it (0: never) the other one acts, or, for None, it dies."""


class Pair:
    """Two sinks on one shard, each of which may be a zombie, or dead and started again."""

    def __init__(self, root: Path, format_: PartFormat) -> None:
        self.root = root
        self.sent: set[int] = set()
        self._format = format_
        self._disks = [SteppingDisk(), SteppingDisk()]
        self._outputs = [self._open(0), self._open(1)]

    def turn(self, who: int, act: Callable[[], object], step: int, then: object) -> None:
        """`then`: what the other one does at that step; None: this one ends there."""
        disk = self._disks[who]
        disk.at(step, then if callable(then) else stop)
        try:
            act()
        except Stopped:
            disk.clear()
            self._outputs[who] = self._open(who)
            act()  # delivered again
        disk.clear()

    def action(self, who: int, kind: str, ids: list[tuple[int, bool]]) -> Callable[[], object]:
        if kind == "tidy":
            return lambda: self._outputs[who].tidy()
        if kind == "open":
            return lambda: self._reopen(who)
        made = [row_for((failed if bad else result)(i)) for i, bad in ids]
        return lambda: self._commit(who, made)

    def _commit(self, who: int, made: list[Row]) -> None:
        self._outputs[who].commit(made)
        known = {task for task, _ in self._outputs[who].ids}
        assert {row.summary.task_index for row in made} <= known
        self.sent |= {row.summary.task_index for row in made}

    def _reopen(self, who: int) -> None:
        self._outputs[who] = self._open(who)

    def _open(self, who: int) -> PartFiles:
        return opened(self.root, self._format, self._disks[who], block=2)


@pytest.mark.parametrize(("format_", "examples"), [("jsonl.zst", 150), ("parquet", 40)])
def test_whoever_acts_or_dies_at_any_step_every_rollout_is_there_once(
    tmp_path_factory: pytest.TempPathFactory, format_: PartFormat, examples: int
) -> None:
    @given(turns=st.lists(Turn, max_size=12))
    @settings(max_examples=examples, deadline=None)
    def check(
        turns: list[tuple[tuple[int, tuple[str, list[tuple[int, bool]]]], int, object]],
    ) -> None:
        pair = Pair(tmp_path_factory.mktemp("pair") / "x", format_)
        for (who, (kind, ids)), step, other in turns:
            then = None
            if isinstance(other, tuple):
                then = pair.action(1 - who, *other[1])
            pair.turn(who, pair.action(who, kind, ids), step, then)
        assert len(opened(pair.root, format_, block=2).ids) == len(pair.sent)
        good, bad = outside(pair.root), outside(pair.root, "failed")
        assert not doubled(good)
        assert not doubled(bad)
        assert {task for task, _ in good + bad} == pair.sent
        report = audit(pair.root, expected=[(task, 0) for task in pair.sent])
        assert (report.problems, report.void) == ((), 0)
        assert not [name for name in names(pair.root) if name.startswith(".tmp")]

    check()
