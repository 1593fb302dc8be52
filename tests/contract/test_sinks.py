"""What every output promises: each rollout one durable row, whatever arrives and whoever dies."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sinks.base import OutputBroken, OutputFull, OutputRefused
from sinks.rows import Row, row_for
from tests.support.disks import FaultyDisk
from tests.support.outputs import KINDS, checked
from tests.support.processes import run_python
from tests.support.rollouts import failed, result


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    name = request.param
    assert isinstance(name, str)
    return name


def rows(*ids: int) -> list[Row]:
    return [row_for(result(i)) for i in ids]


def test_each_rollout_is_written_once_over_restarts(kind: str, tmp_path: Path) -> None:
    for _ in range(3):
        output = KINDS[kind](tmp_path / "x", None)
        known = len(output.ids)
        new = output.commit(rows(1, 2, 1, 3)) + output.commit(rows(3, 2))
        assert len(new) == 3 - known
        assert sorted(output.ids) == [(1, 0), (2, 0), (3, 0)]
        assert (output.totals.completed, output.totals.rewarded) == (3, 3)
        output.close()
        output.close()
    report = checked(kind, tmp_path / "x", [(1, 0), (2, 0), (3, 0)])
    assert report.problems == ()
    assert (report.rows, report.totals.completed) == (3, 3)


def test_nothing_is_written_for_an_empty_batch(kind: str, tmp_path: Path) -> None:
    output = KINDS[kind](tmp_path / "x", None)
    assert output.commit([]) == []
    output.close()
    assert checked(kind, tmp_path / "x", []).ok


def test_another_runs_output_is_refused(kind: str, tmp_path: Path) -> None:
    output = KINDS[kind](tmp_path / "x", None)
    output.commit([row_for(result(1, run="run-b"))])
    output.close()
    with pytest.raises(OutputRefused, match="run-b"):
        KINDS[kind](tmp_path / "x", None)


@pytest.mark.parametrize("fault", ["short", "enospc", "fsync enospc"])
def test_a_full_disk_is_said_and_nothing_is_lost(kind: str, fault: str, tmp_path: Path) -> None:
    disk = FaultyDisk()
    output = KINDS[kind](tmp_path / "x", disk)
    output.commit(rows(1))
    disk.fail_next(fault)
    with pytest.raises(OutputFull):
        output.commit(rows(1, 2, 3))
    assert sorted(output.ids) == [(1, 0)]
    assert len(output.commit(rows(1, 2, 3))) == 2
    output.close()
    assert checked(kind, tmp_path / "x", [(1, 0), (2, 0), (3, 0)]).problems == ()


@pytest.mark.parametrize("fault", ["eio", "fsync eio"])
def test_after_a_broken_disk_a_new_process_goes_on(kind: str, fault: str, tmp_path: Path) -> None:
    disk = FaultyDisk()
    output = KINDS[kind](tmp_path / "x", disk)
    output.commit(rows(1))
    disk.fail_next(fault)
    with pytest.raises(OutputBroken):
        output.commit(rows(2, 3))
    output.close()
    again = KINDS[kind](tmp_path / "x", None)
    again.commit(rows(1, 2, 3))
    again.close()
    assert checked(kind, tmp_path / "x", [(1, 0), (2, 0), (3, 0)]).problems == ()


PLACES: Final = (
    "sink.before_write",
    "sink.before_link",
    "sink.after_link",
    "sink.after_fsync",
    "sink.before_rename",
    "sink.after_rename",
)
MERGING: Final = ("sink.before_merge", "sink.after_merge", "sink.amid_removal")


def _places_of(kind: str) -> Sequence[str]:
    if kind in {"jsonl", "apart"}:
        return ("sink.before_write", "sink.after_fsync")
    if kind == "merging":
        return PLACES[:4] + MERGING
    return PLACES if kind == "parquet" else PLACES[:4]


@pytest.mark.parametrize(
    ("kind", "place"), [(kind, place) for kind in KINDS for place in _places_of(kind)]
)
def test_killed_at_any_step_nothing_acknowledged_is_lost(
    kind: str, place: str, tmp_path: Path
) -> None:
    acked = tmp_path / "acked"
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from broker import crashpoints
from sinks.rows import row_for
from test_sinks import KINDS
from tests.support.rollouts import result
output = KINDS[{kind!r}](Path({str(tmp_path / "x")!r}), None)
crashpoints.arm({place!r} + ":" + sys.argv[1])
for batch in range(3):
    output.commit([row_for(result(batch * 2 + i)) for i in range(2)])
    Path({str(acked)!r}).write_text(str(batch * 2 + 2))
output.close()
"""
    once = "rename" in place or place in MERGING
    run_python(code, 1 if once else 2, expect=137)
    durable = int(acked.read_text())
    output = KINDS[kind](tmp_path / "x", None)
    assert set(range(durable)) <= {task for task, _ in output.ids}
    output.commit(rows(*range(6)))
    output.close()
    assert checked(kind, tmp_path / "x", [(i, 0) for i in range(6)]).problems == ()


Step = st.tuples(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 1), st.booleans()), max_size=5),
    st.sampled_from([None, "short", "enospc", "fsync enospc", "eio", "fsync eio", "restart"]),
)


@given(steps=st.lists(Step, max_size=8))
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_batches_and_faults_leave_exactly_what_was_acknowledged_or_redelivered(
    kind: str, tmp_path_factory: pytest.TempPathFactory, steps: list[Any]
) -> None:
    path = tmp_path_factory.mktemp("any") / "x"
    disk = FaultyDisk()
    output = KINDS[kind](path, disk)
    sent: set[tuple[int, int]] = set()
    for batch, fault in steps:
        made = [row_for((failed if bad else result)(task, rep)) for task, rep, bad in batch]
        if fault not in {None, "restart"}:
            disk.fail_next(fault)
        try:
            output.commit(made)
        except OutputFull:
            disk.clear()
            output.commit(made)
        except OutputBroken:
            fault = "restart"
        disk.clear()
        if fault == "restart":
            output.close()
            output = KINDS[kind](path, disk)
            output.commit(made)
        sent |= {(task, rep) for task, rep, _ in batch}
        assert set(output.ids) == sent
    totals = output.totals
    output.close()
    report = checked(kind, path, sorted(sent))
    assert report.problems == ()
    assert (report.totals.completed, report.totals.failed) == (totals.completed, totals.failed)
