"""Whatever ends `warren collect`, the same command goes on: no row twice, no call paid again."""

import asyncio
import random
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command import (
    asked,
    by_request,
    echo,
    ended,
    ids_of,
    question,
    rows_of,
    spawn,
    until,
    warren,
    write_rows,
)
from tests.support.provider import Behaviour, FakeProvider, Seen, calls, tool_call

CALLS_PER_ROLLOUT = 2


class Game:
    """A run of 40 rollouts of two model calls each, on a model that counts."""

    def __init__(self, folder: Path, model: FakeProvider, moody: Path) -> None:
        self.folder, self.model = folder, model
        self.output = folder / "x.jsonl"
        write_rows(folder / "t.jsonl", [asked(f"question {i}") for i in range(20)])
        play = ["--env", moody, "--model", "m", "--base-url", model.url, "--concurrency", "8"]
        self.words = ["collect", "t.jsonl", *play, "-o", "x.jsonl", "--repeats", "2", "--json"]
        model.default = two_steps(0.02)

    def start(self, crashpoint: str = "") -> subprocess.Popen[bytes]:
        armed = {"WARREN_CRASHPOINT": crashpoint}
        self.process = spawn(*self.words, cwd=self.folder, variables=armed)
        return self.process

    def end(self) -> None:
        """Leave nothing that runs."""
        self.process.kill()
        self.process.communicate()

    def wait(self, process: subprocess.Popen[bytes], calls: int) -> None:
        """Until the model was asked so often, or the process has ended."""
        until(lambda: len(self.model.seen) >= calls or process.poll() is not None)

    def asked(self) -> Counter[str]:
        """How often each step of each conversation was asked for, repeats together."""
        steps = (f"{question(s.json)}, {len(s.json['messages'])} items" for s in self.model.seen)
        return Counter(steps)

    def check(self, *, repeated: int = 0) -> None:
        """Every rollout once; at most so many calls more than it needs."""
        assert ids_of(rows_of(self.output)) == [(i, k) for i in range(20) for k in range(2)]
        assert len(self.model.seen) - 40 * CALLS_PER_ROLLOUT <= repeated
        assert min(self.asked().values()) == 2
        assert warren("audit", "x.jsonl", cwd=self.folder).ok()
        left = {path.name for path in self.folder.iterdir()}
        assert left == {"t.jsonl", "x.jsonl", "x.jsonl.run.json"}


def two_steps(delay_s: float) -> Behaviour:
    """Call a tool, then repeat the question."""
    tool, text = calls(tool_call("add", '{"a": 1, "b": 2}')), by_request(echo, delay_s=delay_s)

    async def behave(seen: Seen, writer: asyncio.StreamWriter) -> None:
        first = seen.json["messages"][-1]["role"] == "user"
        await (tool if first else text)(seen, writer)

    return behave


@pytest.fixture
def game(tmp_path: Path, model: FakeProvider, moody: Path) -> Iterator[Game]:
    made = Game(tmp_path, model, moody)
    yield made
    made.end()


def test_killed_at_any_moment_it_goes_on_without_paying_twice(game: Game) -> None:
    luck, kills, in_flight = random.Random(7), 0, 0
    process = game.start()
    while process.poll() is None:
        want = len(game.model.seen) + luck.randint(1, 30)
        game.wait(process, want)
        if process.poll() is None and kills < 4:
            process.kill()
            kills, in_flight = kills + 1, in_flight + game.model.in_flight + 8
            ended(process)
            process = game.start()
    done = ended(process).ok()
    assert kills == 4
    assert done.json["rollouts"] == done.json["completed"] == 40
    assert done.json["model_calls"] == 80
    assert "going on with run" in done.err
    game.check(repeated=in_flight)


@pytest.mark.parametrize("place", ["after_fsync", "before_ack"])
def test_killed_inside_the_sink_it_goes_on(game: Game, place: str) -> None:
    game.words += ["--run", "mine", "-q"]
    assert ended(game.start(f"sink.{place}:2")).code == 137
    before = len(game.model.seen)
    assert ended(game.start()).ok().json["run_id"] == "mine"
    assert len(game.model.seen) > before or before == 80
    game.check(repeated=16)


def test_a_torn_last_line_is_repaired(game: Game) -> None:
    ended(game.start()).ok()
    whole = game.output.read_bytes()
    game.output.write_bytes(whole[:-100])
    done = ended(game.start()).ok()
    assert done.json["rollouts"] == 40
    game.check(repeated=CALLS_PER_ROLLOUT)


def test_a_finished_run_is_not_run_again_and_can_be_extended(game: Game) -> None:
    full, game.words = game.words, [*game.words[:-3], "--limit", "5", "--json"]
    assert ended(game.start()).ok().json["rollouts"] == 5
    again = ended(game.start()).ok()
    assert again.json["rollouts"] == 5
    assert len(game.model.seen) == 5 * CALLS_PER_ROLLOUT
    game.words = full
    extended = ended(game.start()).ok()
    assert extended.json["rollouts"] == 40
    assert extended.json["run_id"] == again.json["run_id"]
    assert "extended to all tasks, 2 repeats" in extended.err
    game.check()


def test_another_command_on_the_same_output_is_refused_by_the_field_that_differs(
    game: Game,
) -> None:
    game.words += ["-q", "--limit", "2"]
    ended(game.start()).ok()
    before = game.output.read_bytes()
    words = list(game.words)
    changes = {
        "model": ["--model", "other"],
        "environment": ["--env", "weather"],
        "sampling": ["--temperature", "0.3"],
        "belongs to run": ["--run", "another"],
    }
    for field, more in changes.items():
        game.words = [*words, *more]
        done = ended(game.start())
        assert done.code == 2
        assert field in done.err
        assert "--overwrite" in done.err
    write_rows(game.folder / "t.jsonl", [asked("something else")])
    game.words = words
    done = ended(game.start())
    assert (done.code, "dataset" in done.err) == (2, True)
    assert game.output.read_bytes() == before
    game.words = [*words, "--overwrite"]
    assert ended(game.start()).ok().json["rollouts"] == 2


def test_an_output_that_was_deleted_is_collected_anew_and_that_is_said(game: Game) -> None:
    ended(game.start()).ok()
    game.output.unlink()
    done = ended(game.start()).ok()
    assert "is gone, so its run begins anew (new generation)" in done.err
    assert done.json["rollouts"] == 40
    assert len(game.model.seen) == 160


def test_a_second_collector_is_refused_and_an_interrupt_says_how_to_go_on(game: Game) -> None:
    game.model.default = two_steps(2.0)
    process = game.start()
    until(lambda: game.output.exists() and game.output.read_bytes().count(b"\n") >= 3)
    second = ended(game.start())
    assert second.code == 2
    assert f"process {process.pid} on {socket.gethostname()}" in second.err
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    done = ended(process)
    assert time.monotonic() - began < 5
    assert (done.code, done.out) == (130, "")
    safe = game.output.read_bytes().count(b"\n")
    assert f"interrupted: {safe} of 40 rollouts are safe in x.jsonl" in done.err
    assert "the same command goes on" in done.err
    assert "Traceback" not in done.err
    game.model.default = two_steps(0.0)
    assert ended(game.start()).ok().json["rollouts"] == 40
    game.check(repeated=8)
