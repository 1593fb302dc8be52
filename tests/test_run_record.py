"""The run record: the same command goes on, another one is refused, and only one at a time."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.messages import Sampling
from producers.run_record import (
    OpenedRun,
    RunBusy,
    RunConflict,
    RunSpec,
    open_run,
    read_record,
    record_path,
)

SPEC = RunSpec(
    dataset="tasks.jsonl",
    dataset_sha256="aa",
    environment="calculator",
    model="scripted",
    repeats=2,
    limit=10,
)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "rollouts.jsonl"


def begun(output: Path, spec: RunSpec = SPEC, *, run: str | None = None) -> OpenedRun:
    """A run that was opened, has an output, and was closed again."""
    with open_run(output, spec, run=run) as opened:
        output.touch()
    return opened


def test_the_record_is_on_disk_before_anything_is_published(output: Path) -> None:
    with open_run(output, SPEC, run="mine") as opened:
        stored = json.loads(record_path(output).read_text(encoding="utf-8"))
    assert not opened.resumed
    assert stored["run"] == "mine"
    assert stored["watermark"] == [0, 0]
    assert stored["dataset_sha256"] == "aa"


def test_the_same_command_goes_on(output: Path) -> None:
    first = begun(output)
    with open_run(output, SPEC) as second:
        assert second.resumed
        assert second.record == first.record
    with open_run(output, SPEC, run=first.record.run) as third:
        assert third.resumed


def test_a_larger_limit_or_repeats_extends_the_run(output: Path) -> None:
    with open_run(output, SPEC) as opened:
        output.touch()
        opened.published(10, repeats=2)
    larger = dataclasses.replace(SPEC, limit=None, repeats=3)
    with open_run(output, larger) as opened:
        assert opened.record.limit is None
        assert opened.record.watermark == (10, 10, 0)
        assert any("extended to all tasks, 3 repeats" in note for note in opened.notes)


def test_a_run_never_shrinks(output: Path) -> None:
    begun(output)
    with open_run(output, dataclasses.replace(SPEC, limit=3, repeats=1)) as opened:
        assert (opened.record.limit, opened.record.repeats) == (10, 2)
        assert any("never shrink" in note for note in opened.notes)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dataset_sha256": "bb"}, "dataset sha256 is aa, now it is bb"),
        ({"environment": "weather"}, "environment is calculator, now it is weather"),
        ({"model": "gpt"}, "model is scripted, now it is gpt"),
        ({"sampling": Sampling(seed=1)}, 'sampling is the default, now it is {"seed": 1}'),
    ],
)
def test_another_command_is_refused_with_the_field_and_both_values(
    output: Path, change: dict[str, object], said: str
) -> None:
    begun(output)
    before = record_path(output).read_bytes()
    with pytest.raises(RunConflict, match=r"--overwrite .*another -o") as caught:
        open_run(output, dataclasses.replace(SPEC, **change))  # type: ignore[arg-type]
    assert said in str(caught.value)
    assert record_path(output).read_bytes() == before


def test_another_run_id_is_refused(output: Path) -> None:
    begun(output, run="mine")
    with pytest.raises(RunConflict, match="belongs to run 'mine', not 'yours'"):
        open_run(output, SPEC, run="yours")


def test_a_run_id_must_be_a_name(output: Path) -> None:
    with pytest.raises(RunConflict, match="only a-z"):
        open_run(output, SPEC, run="My Run")


def test_a_dataset_may_move(output: Path) -> None:
    begun(output)
    with open_run(output, dataclasses.replace(SPEC, dataset="/elsewhere.jsonl")) as opened:
        assert opened.resumed


def test_an_output_without_a_record_is_refused_and_kept(output: Path) -> None:
    output.write_text("precious", encoding="utf-8")
    with pytest.raises(RunConflict, match="--overwrite"):
        open_run(output, SPEC)
    assert output.read_text(encoding="utf-8") == "precious"
    assert not record_path(output).exists()


def test_overwrite_deletes_every_output_and_begins_anew(output: Path) -> None:
    first = begun(output)
    parts = output.with_name("rollouts.jsonl.parts")
    parts.mkdir()
    (parts / "0").touch()
    other = dataclasses.replace(SPEC, model="gpt")
    with open_run(output, other, overwrite=True, outputs=[output, parts]) as opened:
        assert not opened.resumed
        assert opened.record.generation != first.record.generation
    assert not output.exists()
    assert not parts.exists()


def test_an_output_that_is_gone_is_a_new_generation_said_aloud(output: Path) -> None:
    first = begun(output)
    output.unlink()
    with open_run(output, SPEC) as opened:
        assert not opened.resumed
        assert opened.record.run == first.record.run
        assert opened.record.generation != first.record.generation
        assert "is gone" in opened.notes[0]


@pytest.mark.parametrize("content", ["", "{", '{"schema": 2}', "[]"])
def test_a_record_that_cannot_be_read_is_refused_until_overwritten(
    output: Path, content: str
) -> None:
    begun(output)
    record_path(output).write_text(content, encoding="utf-8")
    with pytest.raises(RunConflict, match=r"cannot be read .*--overwrite"):
        open_run(output, SPEC)
    open_run(output, SPEC, overwrite=True).close()


def test_a_second_collector_is_refused_with_host_and_pid(output: Path) -> None:
    with open_run(output, SPEC):
        with pytest.raises(RunBusy, match=rf"process {os.getpid()} on \S+"):
            open_run(output, SPEC)
        with pytest.raises(RunBusy):
            open_run(output, SPEC, overwrite=True)


def test_a_refused_command_leaves_the_lock_to_its_holder(output: Path) -> None:
    begun(output)
    with pytest.raises(RunConflict):
        open_run(output, dataclasses.replace(SPEC, model="gpt"))
    open_run(output, SPEC).close()
    assert [path.name for path in output.parent.iterdir() if "lock" in path.name] == []


HOLDER = """
import pathlib, sys
from producers.run_record import RunSpec, open_run
spec = RunSpec(dataset="", dataset_sha256="aa", environment="calculator", model="scripted",
               repeats=2, limit=10)
open_run(pathlib.Path(sys.argv[1]), spec)
print("open", flush=True)
sys.stdin.read()
"""


def test_the_lock_of_a_killed_process_is_taken_over(output: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(output)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"open\n"
        with pytest.raises(RunBusy, match=f"process {holder.pid} on"):
            open_run(output, SPEC)
        holder.kill()
        holder.wait(timeout=10)
    open_run(output, SPEC).close()


def test_the_watermark_only_rises_and_is_stored(output: Path) -> None:
    with open_run(output, SPEC) as opened:
        opened.published(5, repeats=2)
        opened.published(3, repeats=2)
        opened.published(7, repeats=1)
    stored = read_record(record_path(output))
    assert stored is not None
    assert stored.watermark == (7, 5)


Size = st.none() | st.integers(1, 5)


@given(st.lists(st.tuples(Size, st.integers(1, 4)), min_size=1, max_size=6))
def test_a_run_is_as_large_as_the_largest_command(
    tmp_path_factory: pytest.TempPathFactory, asked: list[tuple[int | None, int]]
) -> None:
    output = tmp_path_factory.mktemp("run") / "out.jsonl"
    for limit, repeats in asked:
        opened = begun(output, dataclasses.replace(SPEC, limit=limit, repeats=repeats))
    limits = [limit for limit, _ in asked]
    largest = None if None in limits else max(limit for limit in limits if limit is not None)
    assert opened.record.limit == largest
    assert opened.record.repeats == max(repeats for _, repeats in asked)
    assert len(opened.record.watermark) == opened.record.repeats
