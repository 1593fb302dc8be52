"""A sink process without room for another row: it waits, loses nothing, goes on when there is."""

import os
import random
import resource

import pytest

from sinks.part_names import list_parts
from tests.support.cluster import Cluster
from tests.support.runs import Worker

TASKS = 60
#: No file may be larger: EFBIG, which Warren takes for what ENOSPC is. Logs stay below it.
ROOM_BYTES = 24 * 1024


def _limit(sink: Worker, limit: int) -> None:
    hard = resource.prlimit(sink.process.pid, resource.RLIMIT_FSIZE)[1]
    resource.prlimit(sink.process.pid, resource.RLIMIT_FSIZE, (limit, hard))


def test_a_sink_whose_disk_is_full_waits_for_room(warren: Cluster) -> None:
    (sink,) = warren.living("sink")
    _limit(sink, ROOM_BYTES)
    padding = random.Random(0).randbytes(2 * ROOM_BYTES).hex()  # compressed, half of it is left
    run = warren.enqueue(TASKS, padding=padding)
    warren.until(lambda: sink.said("output is full"))
    warren.until(run.all_answered)
    assert sink.alive
    assert not run.rows()
    _limit(sink, resource.RLIM_INFINITY)
    run.check()
    assert sink.alive
    assert sink.said("output has room again")


@pytest.mark.faults
@pytest.mark.parametrize("place", ["before_write", "before_link", "after_link", "after_fsync"])
def test_a_torn_part_is_swept_and_its_rows_are_written_once(warren: Cluster, place: str) -> None:
    for sink in warren.living("sink"):
        warren.kill(sink)
    (doomed,) = warren.start("sink", WARREN_CRASHPOINT=f"sink.{place}:2")
    run = warren.enqueue(TASKS)
    warren.until(lambda: not doomed.alive)
    for unfinished in run.output.glob("**/.tmp-*"):
        if unfinished.stat().st_nlink == 1:  # else it is a committed part's other name
            os.truncate(unfinished, unfinished.stat().st_size // 2)
    warren.start("sink")
    run.check()
    assert not list(run.output.glob("**/.tmp-*"))
    assert list_parts(run.output)
