"""`warren policy update`, with two real gateway processes, RabbitMQ and Redis between us."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import vllm_server
from tests.support.background import Background
from tests.support.command import (
    asked,
    ended,
    ids_of,
    rows_of,
    spawn,
    until,
    warren,
    write_rows,
)
from tests.support.vllm_server import FakeVllm
from workers.spec import message_text


@pytest.fixture
def engine() -> Iterator[FakeVllm]:
    background = Background()
    yield background.enter(vllm_server.running())
    background.close()


@pytest.fixture
def variables(rabbitmq: object, redis_server: object) -> dict[str, str]:
    return {
        "WARREN_BROKER": rabbitmq.url,  # type: ignore[attr-defined]
        "WARREN_REDIS": redis_server.url,  # type: ignore[attr-defined]
    }


@pytest.fixture
def gateways(
    engine: FakeVllm, variables: dict[str, str], tmp_path: Path
) -> Iterator[list[subprocess.Popen[bytes]]]:
    started = []
    logs = [tmp_path / f"gateway-{n}.log" for n in range(2)]
    for log in logs:
        with log.open("wb") as out:
            words = ("worker", "model", "--env", "calculator", "--model", tmp_path.name)
            started.append(
                spawn(
                    *(*words, "--base-url", engine.url, "--api", "vllm", "--log-json"),
                    cwd=tmp_path,
                    stdout=out,
                    stderr=out,
                    variables=variables,
                )
            )
    until(lambda: all("worker started" in log.read_text("utf-8") for log in logs), 60)
    yield started
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.usefixtures("gateways")
def test_the_engine_loads_once_whichever_gateway_leads(
    engine: FakeVllm, variables: dict[str, str], tmp_path: Path
) -> None:
    words = ("policy", "update", "--model", tmp_path.name, "--path", "/weights/7", "--json")
    done = warren(*words, "--version", 7, "--mode", "wait", cwd=tmp_path, **variables).ok()
    assert (done.json["model"], done.json["version"]) == (tmp_path.name, 7)
    assert (engine.loads, engine.version) == (["/weights/7"], "7")
    again = warren(*words, "--version", 6, cwd=tmp_path, **variables)
    assert (again.code, "at version 7 already" in again.err) == (2, True)
    engine.refuses_weights = True
    failed = warren(*words, "--version", 8, cwd=tmp_path, **variables)
    assert (failed.code, "no such directory" in failed.err) == (3, True)
    assert (engine.loads, engine.version) == (["/weights/7"], "unknown"), "it takes none at all"


@pytest.mark.usefixtures("gateways")
def test_updates_in_every_mode_cost_no_rollout_and_rows_say_what_sampled_them(
    engine: FakeVllm, variables: dict[str, str], tmp_path: Path
) -> None:
    """Three gateways: the two, and the one of the run itself."""
    model, engine.word_s = tmp_path.name, 0.5  # so slow that the run outlives the updates
    write_rows(tmp_path / "t.jsonl", [asked(f"say {n}", expected_answer="1") for n in range(240)])
    common = ("--env", "calculator", "--model", model, "--base-url", engine.url, "--api", "vllm")
    collecting = spawn(
        *("collect", "t.jsonl", *common, "-o", "rows.jsonl", "--concurrency", 4, "--json"),
        cwd=tmp_path,
        variables=variables,
    )
    for version, mode in enumerate(("keep", "wait", "abort"), 1):
        sampled_more(engine, 16)
        words = ("policy", "update", "--model", model, "--path", version, "--version", version)
        warren(*words, "--mode", mode, cwd=tmp_path, **variables).ok()
    engine.word_s = 0.001
    done = ended(collecting).ok()
    rows = rows_of(tmp_path / "rows.jsonl")
    assert (done.json["completed"], len(ids_of(rows))) == (240, 240)
    assert (engine.loads, engine.sampled_while_loading) == (["1", "2", "3"], 0)
    assert engine.aborted > 0, "the last of them broke off what ran"
    for row in rows:
        said = {int(word) for word in message_text(row["response"]["output"][-1]).split()}
        if versions := row["warren"]["policy_version"]:
            assert versions["min"] <= min(said) <= max(said) <= versions["max"]
        else:
            # asked before the first update, when the weights had no number; what its pause held up
            # (mode keep) was sampled with the first ones alone
            assert min(said) <= 1


def sampled_more(engine: FakeVllm, words: int) -> None:
    """Wait until it has sampled so many more."""
    wanted = engine.sampled + words
    until(lambda: engine.sampled >= wanted, 60)
