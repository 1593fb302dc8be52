"""Measuring other tools: what is written for them, what is counted, how runs are paired."""

import ast
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.measure import Measurement
from benchmarks.peers.nemo_gym import NEMO_GYM
from benchmarks.peers.pairs import Ours, Pair, medians, turn_about
from benchmarks.peers.run import PeerRun, measure_peer
from benchmarks.peers.setup import Peer, Place, Setup
from benchmarks.peers.verifiers import VERIFIERS
from benchmarks.scenarios import SCENARIOS

PLAIN = replace(SCENARIOS["embedded-plain"], rollouts=3)
TOKENS = replace(SCENARIOS["embedded-tokens"], rollouts=3)
EMBEDDED = Ours(scenario="embedded-plain", python=Path("python3.11"))
RABBITMQ = Ours(scenario="rabbitmq-plain", python=Path("python3.11"))

SERVER = """\
import signal, subprocess, sys
burn = "import time\\nwhile time.process_time() < 0.2: pass"
subprocess.run([sys.executable, "-c", burn], check=True)
print("all up", flush=True)
signal.pause()
"""
COLLECTOR = """\
import json, sys, urllib.request
with open("rows.jsonl", "w") as rows:
    for index in range(3):
        messages = [{"role": "user", "content": "?"}]
        for step in range(2):
            body = json.dumps({"messages": messages}).encode()
            request = urllib.request.Request(sys.argv[1] + "/chat/completions", body)
            urllib.request.urlopen(request).read()
            messages.append({"role": "tool", "tool_call_id": "call_0", "content": "snow"})
        print(json.dumps({"reward": index % 2}), file=rows)
"""


@pytest.fixture
def place(tmp_path: Path) -> Place:
    venv = tmp_path / "venv"
    venv.mkdir()
    return Place(folder=tmp_path, venv=venv, model_url="http://127.0.0.1:1/v1", port=2)


def test_nemo_gym_gets_a_task_per_rollout_and_finds_its_servers_installed(place: Place) -> None:
    setup = NEMO_GYM.prepare(PLAIN, place)
    setup.write(place.folder)
    tasks = [json.loads(line) for line in (place.folder / "tasks.jsonl").read_text().splitlines()]
    assert [task["responses_create_params"]["input"][1]["content"] for task in tasks] == [
        f"Task 0000000{index}: what is the weather in Oslo?" for index in range(3)
    ]
    config = json.loads((place.folder / "bench.json").read_text())
    assert config["policy_model"]["responses_api_models"]["vllm_model"]["base_url"] == (
        place.model_url
    )
    for server in setup.server_kinds:
        assert (place.folder / "venvs" / server / ".venv").resolve() == place.venv
    ast.parse((place.folder / "resources_servers/bench/app.py").read_text())


def nemo_gym_row(reward: float, ids: list[int], logprobs: list[float]) -> dict[str, Any]:
    output = [{"generation_token_ids": ids, "generation_log_probs": logprobs}, {"output": "4"}]
    return {"reward": reward, "response": {"output": output}}


def test_a_row_of_nemo_gym_is_good_with_its_reward_and_all_its_tokens(place: Place) -> None:
    ids, logprobs = [7] * 12_000, [-0.5] * 12_000
    with_tokens = NEMO_GYM.prepare(TOKENS, place)
    assert with_tokens.is_good(nemo_gym_row(1.0, ids, logprobs))
    assert not with_tokens.is_good(nemo_gym_row(0.0, ids, logprobs))
    assert not with_tokens.is_good(nemo_gym_row(1.0, ids[1:], logprobs[1:]))
    assert not with_tokens.is_good(nemo_gym_row(1.0, ids, []))
    assert NEMO_GYM.prepare(PLAIN, place).is_good(nemo_gym_row(1.0, [], []))


def test_verifiers_gets_an_environment_of_as_many_questions(place: Place) -> None:
    setup = VERIFIERS.prepare(PLAIN, place)
    setup.write(place.folder)
    environment = (place.folder / "bench_env.py").read_text()
    ast.parse(environment)
    assert "'Task {:08d}: what is the weather in Oslo?'.format(index) for index in range(3)" in (
        environment
    )
    assert "3" in setup.collect


def test_verifiers_is_not_measured_with_tokens(place: Place) -> None:
    with pytest.raises(ValueError, match="keeps no token ids"):
        VERIFIERS.prepare(TOKENS, place)


def test_a_run_counts_rows_requests_and_the_cpu_of_children_that_have_ended(
    tmp_path: Path,
) -> None:
    def prepare(_: object, place: Place) -> Setup:
        return Setup(
            files={"server/run.py": SERVER, "collect.py": COLLECTOR},
            servers=[sys.executable, "server/run.py"],
            ready="all up",
            server_kinds={"/elsewhere": "agent"},
            collect=[sys.executable, "collect.py", place.model_url],
            environment={},
            rows="rows.jsonl",
            is_good=lambda row: bool(row["reward"]),
        )

    peer = Peer(name="tool", package="tool", prepare=prepare)
    run = measure_peer(peer, Path(sys.prefix), PLAIN, tmp_path / "run")
    assert run.servers_cpu_s >= 0.15  # of 0.2, which /proc tells in hundredths
    assert run.measured.failed == 2
    assert run.measured.requests_per_rollout == 2
    assert set(run.measured.cpu_ms) == {"collect", "agent", "rest"}
    assert run.cpu_ms_from_nothing > run.measured.cpu_ms_whole_run >= run.measured.cpu_ms_total
    assert run.first_row_s > run.servers_s > 0
    assert run.row_bytes == len('{"reward": 0}\n')


def test_a_tool_that_ends_early_is_told_with_its_log(tmp_path: Path) -> None:
    def prepare(_: object, place: Place) -> Setup:
        return Setup(
            files={},
            collect=[sys.executable, "-c", "raise SystemExit('no such model')"],
            environment={},
            rows="rows.jsonl",
            is_good=bool,
        )

    peer = Peer(name="tool", package="tool", prepare=prepare)
    with pytest.raises(RuntimeError, match="no such model"):
        measure_peer(peer, Path(sys.prefix), PLAIN, tmp_path / "run")


def measurement(cpu_ms: float) -> Measurement:
    return Measurement(
        scenario="plain",
        rollouts=1000,
        concurrency=128,
        rollouts_per_s=100 / cpu_ms,
        wall_s=1,
        first_row_s=1,
        cpu_ms={"collect": cpu_ms},
        cpu_ms_total=cpu_ms,
        cpu_ms_whole_run=cpu_ms + 1,
        peak_mb={"collect": 50.0},
        peak_mb_total=50.0,
        added_p50_ms=None,
        added_p99_ms=None,
        in_flight_max=128,
        in_flight_mean=None,
        efficiency=None,
        slot_time=None,
        starved={},
        failed=0,
        requests_per_rollout=2,
        load_before=0.1,
    )


def peer_run(cpu_ms: float) -> PeerRun:
    run = measurement(cpu_ms)
    return PeerRun(measured=run, servers_s=9, servers_cpu_s=4, row_bytes=1)


def test_ratios_count_start_up_where_they_say_so() -> None:
    pair = Pair(peer=peer_run(20), ours=EMBEDDED, warren=measurement(2))
    assert pair.ratios == {
        "CPU": 10,
        "CPU, start-up too": (20 + 1 + 4) / 3,
        "time": 10,
        "first row": 10,
        "memory": 1,
    }


def test_a_run_of_the_tool_and_one_of_each_of_ours_make_pairs_and_take_turns_at_being_first() -> (
    None
):
    said: list[str] = []
    costs: Mapping[Ours, float] = {EMBEDDED: 2, RABBITMQ: 4}

    def peer() -> PeerRun:
        said.append("peer")
        return peer_run(8 * said.count("peer"))

    def warren(ours: Ours) -> Measurement:
        said.append(ours.scenario)
        return measurement(costs[ours])

    pairs = turn_about([EMBEDDED, RABBITMQ], peer, warren, repeat=3)
    ours = ["embedded-plain", "rabbitmq-plain"]
    assert said == ["peer", *ours, *ours, "peer", "peer", *ours]
    assert medians(pairs)[EMBEDDED]["CPU"] == 8
    assert medians(pairs)[RABBITMQ]["CPU"] == 4
