"""The same run over RabbitMQ and Redis: in one process, over five, and with standing sinks."""

import json
import re
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from sinks.part_formats import read_part
from sinks.part_names import list_parts
from sinks.part_reading import committed_lines
from sinks.parts import PartFiles
from tests.conftest import Names
from tests.support.command import (
    Done,
    asked,
    at_once,
    ended,
    ids_of,
    rewards_of,
    rows_of,
    spawn,
    until,
    warren,
    write_rows,
)
from tests.support.part_world import doubled, outside

KINDS = ("agent", "tool", "model", "verifier", "sink")


class Place:
    """A broker and a store, and worker processes at them."""

    def __init__(self, folder: Path, broker: str, redis: str) -> None:
        self.folder = folder
        self.variables = {"WARREN_BROKER": broker, "WARREN_REDIS": redis}
        self._workers: list[tuple[subprocess.Popen[bytes], Path]] = []

    def start(self, *kinds: str, env: object = "calculator", **variables: str) -> None:
        """One worker of each kind; returns when all of them serve."""
        for kind in kinds:
            more: list[object] = ["--output", "rows"] if kind == "sink" else ["--env", env]
            more += ["--model", "scripted"] if kind == "model" else []
            log = self.folder / f"{kind}.log"
            with log.open("wb") as out:
                process = spawn(
                    *("worker", kind, *more, "--log-json"),
                    cwd=self.folder,
                    stdout=out,
                    stderr=out,
                    variables={**self.variables, **variables},
                )
            self._workers.append((process, log))
        until(lambda: all(self._serves(process, log) for process, log in self._workers), 60)

    def _serves(self, process: "subprocess.Popen[bytes]", log: Path) -> bool:
        assert process.poll() is None, log.read_text(encoding="utf-8")
        return "worker started" in log.read_text(encoding="utf-8")

    def port(self, kind: str) -> int:
        """Where its metrics are."""
        found = re.search(r'"port": ?(\d+)', (self.folder / f"{kind}.log").read_text("utf-8"))
        assert found is not None
        return int(found[1])

    def stop(self) -> None:
        """SIGTERM: each must end well within 5 s of work."""
        for process, _ in self._workers:
            process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        for process, log in self._workers:
            assert process.wait(10) == 0, log.read_text(encoding="utf-8")[-2000:]
        assert time.monotonic() - began < 8  # five interpreters on two loaded cores

    def await_death(self) -> None:
        """Until the worker that was started last has died at its crash point."""
        process, log = self._workers.pop()
        assert process.wait(60) == 137, log.read_text(encoding="utf-8")[-2000:]

    def end(self) -> None:
        for process, _ in self._workers:
            if process.poll() is None:
                process.kill()
            process.wait(10)


@contextmanager
def place(folder: Path, broker: str, redis: str) -> Iterator[Place]:
    made = Place(folder, broker, redis)
    try:
        yield made
    finally:
        made.end()


@pytest.fixture
def here(tmp_path: Path, rabbitmq, redis_server) -> Iterator[Place]:  # type: ignore[no-untyped-def]
    with place(tmp_path, rabbitmq.url, redis_server.url) as made:
        yield made


@pytest.mark.timeout(240)  # some 20 interpreters start, two at a time
def test_the_same_rows_come_out_of_every_way_to_run(
    here: Place, tmp_path: Path, calculator_200: Path, fresh_names: Names
) -> None:
    def collect(output: str, *more: object, **variables: str) -> Path:
        words = ("collect", calculator_200, "--env", "calculator", "--model", "scripted")
        done = warren(*words, "-q", "-o", output, *more, cwd=tmp_path, **variables)
        assert done.ok().out == ""
        return tmp_path / output

    embedded = rows_of(collect("embedded.jsonl"))
    brokered = rows_of(collect("brokered.jsonl", **here.variables))
    here.start(*KINDS)
    external = rows_of(collect("external.jsonl", "--workers", "external", **here.variables))
    run = fresh_names.run
    enqueue = ("enqueue", calculator_200, "--env", "calculator", "--model", "scripted")
    done = warren(
        *(*enqueue, "--run", run, "--wait", "--json", "-q"),
        cwd=tmp_path,
        **here.variables,
    ).ok()
    assert done.json["rollouts"] == done.json["completed"] == 200
    parts = list_parts(tmp_path / "rows" / run)
    queued = [json.loads(line) for part in parts for line in read_part(part.path)]
    expected = rewards_of(embedded)
    assert len(expected) == 200
    for rows in (brokered, external, queued):
        assert ids_of(rows) == ids_of(embedded)
        assert rewards_of(rows) == expected
    for audited in at_once(["audit", "external.jsonl"], ["audit", f"rows/{run}"], cwd=tmp_path):
        assert audited.ok().out.startswith("OK: 200 rows")
    _check_runs(here, run)
    _check_pages(here)
    here.stop()


def test_a_standing_sink_writes_parquet_and_dies_between_a_merge_and_its_end(
    here: Place, tmp_path: Path, fresh_names: Names
) -> None:
    """Half of the rollouts are judged when the others have rows: there are parts to merge."""
    name, run, gate = fresh_names.environment, fresh_names.run, tmp_path / "gate"
    file, root = tmp_path / "mine.py", tmp_path / "rows" / run
    file.write_text(
        "import asyncio, pathlib\nfrom warren import Environment\n"
        f"env, gate = Environment({name!r}), pathlib.Path({str(gate)!r})\n"
        "@env.policy\ndef play(request):\n    return 'x'\n"
        "@env.reward\nasync def fair(rollout):\n"
        "    while rollout.task['late'] and not gate.exists():\n"
        "        await asyncio.sleep(0.01)\n    return 1.0\n",
        encoding="utf-8",
    )
    asked_ = [{**asked(f"question {i}"), "late": i >= 20} for i in range(40)]
    tasks = write_rows(tmp_path / "t.jsonl", asked_)
    PartFiles(root, run=run, format_="parquet", block=2)  # as a sink would, but for the blocks
    here.start("agent", "model", "verifier", env=file)
    here.start("sink", WARREN_FORMAT="parquet", WARREN_CRASHPOINT="sink.after_merge")
    call = partial(warren, cwd=tmp_path, **here.variables)
    call("enqueue", tasks, "--env", file, "--model", "scripted", "--run", run).ok()
    until(lambda: len(list(committed_lines(root))) >= 20 or bool(list(root.glob("*-*-*-*"))), 60)
    gate.touch()
    here.await_death()
    assert doubled(outside(root))
    here.start("sink")
    until(lambda: '"done"' in call("runs", run, "--json").out, 60)
    here.stop()
    assert sorted(outside(root)) == [(i, 0) for i in range(40)]
    assert list(root.glob("part-*-*-*.parquet"))
    assert call("audit", f"rows/{run}").ok().out == "OK: 40 rows, each rollout once\n"
    call("reverify", f"rows/{run}", "--env", file, "-o", "again.jsonl", "-q").ok()
    assert ids_of(rows_of(tmp_path / "again.jsonl")) == [(i, 0) for i in range(40)]
    other = call("worker", "sink", "--output", "rows", "--format", "csv")
    assert (other.code, "jsonl.zst" in other.err) == (2, True)


def _check_runs(here: Place, run: str) -> None:
    words = ["runs", run, "--json"], ["runs"], ["runs", f"{run}x"]
    one, table, unknown = at_once(*words, cwd=here.folder, **here.variables)
    (known,) = one.ok().json["runs"]
    assert (known["run"], known["state"]) == (run, "done")
    assert (known["published"], known["committed"], known["failed"]) == (200, 200, 0)
    line = rf"^{run} +calculator +scripted/calculator +done +200 +200 +0"
    assert re.search(line, table.ok().out, re.MULTILINE)
    assert (unknown.code, f"did you mean {run!r}" in unknown.err) == (2, True)


def _check_pages(here: Place) -> None:
    for kind in KINDS:
        base = f"http://127.0.0.1:{here.port(kind)}"
        for page in ("/healthz", "/readyz", "/metrics"):
            with urllib.request.urlopen(base + page, timeout=10) as answer:
                text = answer.read().decode()
                assert answer.status == 200
        assert f'kind="{kind}"' in text


def _simple_environment(folder: Path, name: str) -> Path:
    """A file with one that needs no tools and rewards everything."""
    file = folder / "mine.py"
    file.write_text(
        f"from warren import Environment\nenv = Environment({name!r}, system_prompt='x')\n"
        "@env.policy\ndef play(request):\n    return 'x'\n"
        "@env.reward\ndef fair(rollout):\n    return 1.0\n",
        encoding="utf-8",
    )
    return file


def test_a_cancelled_runs_tasks_become_cancelled_rows(
    here: Place, tmp_path: Path, fresh_names: Names
) -> None:
    """Nobody works yet: all tasks are queued, so all are cancelled, and none costs a call."""
    name, run = fresh_names.environment, fresh_names.run
    file = _simple_environment(tmp_path, name)
    tasks = write_rows(tmp_path / "t.jsonl", [asked(f"question {i}") for i in range(20)])
    common = ("--env", file, "--model", "scripted", "--run", run)

    def call(*words: object) -> str:
        return warren(*words, cwd=tmp_path, **here.variables).ok().out

    assert "published 20 task instances" in call("enqueue", tasks, *common)
    assert call("cancel", run) == f"cancelled {run}\n"
    here.start(*KINDS, env=file)
    until(lambda: '"done"' in call("runs", run, "--json"), 30)
    parts = list_parts(tmp_path / "rows" / run)
    rows = [json.loads(line) for part in parts for line in read_part(part.path)]
    assert ids_of(rows) == [(i, 0) for i in range(20)]
    assert {row["warren"]["error"]["kind"] for row in rows} == {"cancelled"}
    assert {row["reward"] for row in rows} == {None}
    unknown = warren("cancel", f"{run}-x", cwd=tmp_path, **here.variables)
    assert (unknown.code, run in unknown.err) == (2, True)


def test_queues_that_nobody_works_on_close_the_count_at_their_deadlines(
    here: Place, tmp_path: Path, fresh_names: Names
) -> None:
    """First there are no workers at all, then only an agent."""
    name = fresh_names.environment
    file = tmp_path / "mine.py"
    file.write_text(f"from warren import Environment\nenv = Environment({name!r})\n", "utf-8")
    tasks = write_rows(tmp_path / "t.jsonl", [asked(f"question {i}") for i in range(20)])
    (tmp_path / "warren.toml").write_text("[limits]\nmodel_wait_s = 0.5\nverify_wait_s = 0.5\n")

    def errors(output: str, *more: object) -> set[str]:
        common = ("--env", file, "--model", "scripted", "--workers", "external", "-q")
        words = ("collect", tasks, *common, "-o", output, *more)
        warren(*words, cwd=tmp_path, **here.variables).ok()
        rows = rows_of(tmp_path / output)
        assert ids_of(rows) == [(i, 0) for i in range(20)]
        assert {row["reward"] for row in rows} == {None}
        assert {row["warren"]["error"]["kind"] for row in rows} == {"infra"}
        return {row["warren"]["error"]["message"] for row in rows}

    late = "waited longer than 0.5 s in its {0} queue (--{0}-wait)"
    assert errors("none.jsonl", "--task-wait", "0.5") == {late.format("task")}
    here.start("agent", env=file)
    assert errors("agent.jsonl") == {late.format("model")}


@pytest.mark.faults  # a dozen interpreters start, one after the other
@pytest.mark.timeout(240)
def test_dead_letters_are_listed_shown_replayed_and_dropped_by_hand(
    here: Place, tmp_path: Path, fresh_names: Names
) -> None:
    """Tasks that no agent took in time: failed rows first, good ones after their replay."""
    name, run = fresh_names.environment, fresh_names.run
    file = _simple_environment(tmp_path, name)
    tasks = write_rows(tmp_path / "t.jsonl", [asked(f"question {i}") for i in range(4)])

    def call(*words: object) -> Done:
        return warren(*words, cwd=tmp_path, **here.variables)

    def listed() -> list[dict[str, str]]:
        letters: list[dict[str, str]] = call("dlq", "list", "--run", run, "--json").json["letters"]
        return letters

    here.start("sink", env=file)
    common = ("--env", file, "--model", "scripted", "--run", run, "--task-wait", "0.2")
    assert call("enqueue", tasks, *common, "--wait", "--json").ok().json["failed"] == 4
    letters = listed()
    assert {letter["reason"] for letter in letters} == {"expired"}
    assert {letter["rollout"] for letter in letters} == {f"{run}/{i}/0" for i in range(4)}
    shown = call("dlq", "show", letters[0]["id"]).ok().json
    assert "question" in json.dumps(shown)
    unknown = call("dlq", "drop", "nothing")
    assert (unknown.code, "warren dlq list" in unknown.err) == (2, True)
    call("dlq", "drop", letters[3]["id"]).ok()
    assert len(listed()) == 3
    here.start("agent", "model", "verifier", env=file)  # else the replayed ones expire again
    call("dlq", "replay", "--all", "--run", run).ok()

    def good() -> set[str]:
        parts = [p for p in list_parts(tmp_path / "rows" / run) if p.series == "part"]
        rows = [json.loads(line) for part in parts for line in read_part(part.path)]
        return {row["warren"]["rollout_id"] for row in rows if row["reward"] == 1.0}

    until(lambda: len(good()) == 3, 30)
    assert good() == {letter["rollout"] for letter in letters[:3]}
    assert listed() == []


def test_an_interrupted_collector_with_external_workers_says_how_to_go_on_or_cancel(
    here: Place, tmp_path: Path, fresh_names: Names, moody: Path
) -> None:
    tasks = write_rows(tmp_path / "t.jsonl", [asked(f"question {i}") for i in range(20)])
    run = fresh_names.run
    play = ("collect", tasks, "--env", moody, "--model", f"nobody-{run}", "-o", "x.jsonl")
    words = (*play, "--workers", "external", "--run", run, "-q")
    process = spawn(*words, cwd=tmp_path, variables=here.variables)
    until(lambda: '"watermark": [\n  20' in _text(tmp_path / "x.jsonl.run.json"), 30)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    done = ended(process)
    assert time.monotonic() - began < 5
    assert done.code == 130
    assert "interrupted: 0 of 20 rollouts are safe in x.jsonl" in done.err
    assert f"`warren cancel {run}`" in done.err
    warren("cancel", run, cwd=tmp_path, **here.variables).ok()


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""
