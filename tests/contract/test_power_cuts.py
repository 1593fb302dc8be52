"""What an output has acknowledged is there after a power cut: bytes and names, at any moment."""

import os
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from sinks.files import Disk
from sinks.jsonl import JsonlFile, remove_failed
from sinks.parquet import iter_rows
from sinks.rows import Row, row_for
from tests.support.outputs import KINDS, checked
from tests.support.power import PowerDisk
from tests.support.rollouts import failed, result


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    name = request.param
    assert isinstance(name, str)
    return name


@pytest.fixture
def disk() -> Iterator[PowerDisk]:
    made = PowerDisk()
    yield made
    made.close()


@pytest.fixture
def live(tmp_path: Path) -> Path:
    folder = tmp_path / "live"
    folder.mkdir()
    return folder


class Cuts:
    """The power fails, now; what is found then."""

    def __init__(self, kind: str, disk: PowerDisk, live: Path) -> None:
        self._kind, self._disk, self._live = kind, disk, live
        self._folders = (live.parent / f"cut-{n}" for n in count())

    def now(self) -> set[int]:
        """The tasks that have a row afterwards; the output is sound, and can be gone on with."""
        folder = next(self._folders)
        self._disk.cut(self._live, folder)
        output = KINDS[self._kind](folder / "x", None)
        found = {task for task, _ in output.ids}
        output.commit(good(99))
        output.close()
        report = checked(self._kind, folder / "x")
        assert report.problems == ()
        assert report.rows == len(found) + 1
        return found


@pytest.fixture
def cuts(kind: str, disk: PowerDisk, live: Path) -> Cuts:
    return Cuts(kind, disk, live)


def good(*ids: int) -> list[Row]:
    return [row_for(result(i)) for i in ids]


def bad(*ids: int) -> list[Row]:
    return [row_for(failed(i)) for i in ids]


def test_what_was_committed_is_there_after_every_batch_and_after_the_end(
    kind: str, disk: PowerDisk, live: Path, cuts: Cuts
) -> None:
    output = KINDS[kind](live / "x", disk)
    output.commit(good(0, 1))
    assert cuts.now() == {0, 1}
    output.commit(bad(2))
    assert cuts.now() == {0, 1, 2}
    output.commit([*good(3), *bad(4)])
    assert cuts.now() == {0, 1, 2, 3, 4}
    output.close()
    assert cuts.now() == {0, 1, 2, 3, 4}


def test_what_a_process_left_that_did_not_live_to_sync_it_is_synced_before_it_counts(
    kind: str, disk: PowerDisk, live: Path, cuts: Cuts
) -> None:
    """The next process tells the run's record of these rows, and the journal forgets them."""
    disk.dies_before_syncing_names = True
    KINDS[kind](live / "x", disk).commit(good(0, 1))
    disk.dies_before_syncing_names = False
    for path in live.glob("*.parts/.lock"):
        path.unlink()  # the dead process holds no lock
    for path in live.glob("*.jsonl"):  # nor do its files
        copied = path.read_bytes()
        path.unlink()
        path.write_bytes(copied)
    output = KINDS[kind](live / "x", disk)
    assert sorted(output.ids) == [(0, 0), (1, 0)]
    assert cuts.now() == {0, 1}
    output.close()


@pytest.mark.parametrize("kind", ["parts", "plain"])
def test_a_rivals_part_is_synced_before_its_rows_count_as_written(
    kind: str, disk: PowerDisk, live: Path, cuts: Cuts
) -> None:
    ours = KINDS[kind](live / "x", disk)
    rival = KINDS[kind](live / "x", disk)
    disk.dies_before_syncing_names = True
    rival.commit(good(0))
    disk.dies_before_syncing_names = False
    assert ours.commit(good(0)) == []  # the rival's row counts, so this delivery is acknowledged
    assert cuts.now() == {0}


def test_a_file_that_is_rewritten_without_its_doubled_rows_is_there_whole(
    disk: PowerDisk, live: Path
) -> None:
    first = JsonlFile(live / "x.jsonl", disk=disk)
    first.commit(good(0, 1))
    first.close()
    with (live / "x.jsonl").open("ab") as file:
        file.write(good(0)[0].data + b"\n")
    JsonlFile(live / "x.jsonl", disk=disk).close()
    assert Cuts("jsonl", disk, live).now() == {0, 1}


def test_a_file_whose_failed_rows_are_taken_out_is_there_whole(disk: PowerDisk, live: Path) -> None:
    first = JsonlFile(live / "x.jsonl", disk=disk)
    first.commit([*good(0, 1), *bad(2)])
    first.close()
    assert remove_failed(live / "x.jsonl", disk) == 1
    assert Cuts("jsonl", disk, live).now() == {0, 1}


def test_a_compacted_file_is_whole_before_it_takes_its_name(disk: PowerDisk, live: Path) -> None:
    output = KINDS["parquet"](live / "x", disk)
    output.commit(good(0, 1, 2))
    output.close()
    disk.cut(live, live.parent / "cut")
    assert (live.parent / "cut" / "x.parquet").stat().st_size > 0
    assert len(list(iter_rows(live.parent / "cut" / "x.parquet"))) == 3


def test_the_real_disk_asks_the_kernel() -> None:
    """The others here only play. A pipe cannot be synced, as a kernel says that is asked."""
    read_end, write_end = os.pipe()
    try:
        with pytest.raises(OSError, match="Invalid argument"):
            Disk().fsync(write_end)
    finally:
        os.close(read_end)
        os.close(write_end)
