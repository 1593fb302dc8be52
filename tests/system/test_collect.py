"""`warren collect`, embedded, from the outside: rows, contract, exit codes, options."""

import asyncio
import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.support.command import (
    asked,
    at_once,
    by_request,
    echo,
    ids_of,
    rows_of,
    warren,
    write_rows,
)
from tests.support.ports import free_port
from tests.support.provider import FakeProvider, Seen, error, hangs, says

CONTRACT = {
    *("run_id", "tasks", "rollouts", "completed", "truncated", "failed", "failed_by_kind"),
    *("mean_reward", "pass_at", "model_calls", "tool_calls", "tokens", "wall_s", "outputs"),
}
ROW = {
    *("responses_create_params", "response", "reward", "_ng_task_index", "_ng_rollout_index"),
    *("agent_ref", "reward_components", "warren"),
}
OWN = {
    *("schema", "run_id", "rollout_id", "group_id", "task_index", "repeat_index", "environment"),
    *("status", "error", "attempt", "policy_version", "reward_components", "usage", "timing"),
}
KEY = "sk-very-secret-0123456789"


def test_every_rollout_has_one_row_of_the_promised_shape(
    tmp_path: Path, calculator_tasks: Path
) -> None:
    given = [json.loads(line) for line in calculator_tasks.read_text(encoding="utf-8").splitlines()]
    done = warren(
        *("collect", calculator_tasks, "--env", "calculator", "--model", "scripted"),
        *("-o", "deep/er/rows.jsonl", "--repeats", 3, "--run", "r-1", "--json"),
        cwd=tmp_path,
    ).ok()
    rows = rows_of(tmp_path / "deep/er/rows.jsonl")
    assert ids_of(rows) == [(i, k) for i in range(len(given)) for k in range(3)]
    for row in rows:
        assert set(row) >= ROW
        assert set(row["warren"]) >= OWN
        task, repeat = row["warren"]["task_index"], row["warren"]["repeat_index"]
        assert row["warren"]["rollout_id"] == f"r-1/{task}/{repeat}"
        assert (row["_ng_task_index"], row["_ng_rollout_index"]) == (task, repeat)
        assert row["expected_answer"] == given[task]["expected_answer"]
        assert row["response"]["object"] == "response"
        assert row["agent_ref"]["name"] == row["warren"]["environment"] == "calculator"
    rewards = [row["reward"] for row in rows]
    assert set(rewards) == {0.0, 1.0}
    assert len(done.out.splitlines()) == 1
    assert set(done.json) == CONTRACT
    assert done.json["rollouts"] == done.json["completed"] == len(rows)
    assert done.json["tasks"] == len(given)
    assert done.json["mean_reward"] == pytest.approx(sum(rewards) / len(rewards))
    assert list(done.json["pass_at"]) == ["1", "2", "3"]
    assert done.json["outputs"] == ["deep/er/rows.jsonl"]
    assert "done" in done.err


def test_stdout_has_results_only_and_quiet_has_nothing(
    tmp_path: Path, calculator_tasks: Path
) -> None:
    common = ("collect", calculator_tasks, "--env", "calculator", "--model", "scripted", "-o")
    table, quiet = at_once([*common, "a.jsonl"], [*common, "b.jsonl", "-q"], cwd=tmp_path)
    assert "mean reward" in table.ok().out
    assert "wrote a.jsonl" in table.out
    assert "wrote" not in table.err
    assert (quiet.code, quiet.out, quiet.err) == (0, "", "")


@pytest.mark.parametrize("api", ["chat", "responses"])
def test_options_reach_the_model(
    tmp_path: Path, model: FakeProvider, api: str, moody: Path
) -> None:
    tasks = write_rows(tmp_path / "t.jsonl", [asked(f"question {i} ✓ ü 你好") for i in range(9)])
    (tmp_path / "prompt.txt").write_text("Antworte höflich.\n", encoding="utf-8")
    done = warren(
        *("collect", tasks, "--env", f"{moody}:env", "--model", "org/some-model"),
        *("--base-url", model.url, "--api", api, "--api-key-env", "MY_KEY", "-o", "x.jsonl"),
        *("--limit", 4, "--repeats", 2, "--temperature", 0.5, "--top-p", 0.9, "--concurrency", 3),
        *("--max-output-tokens", 77, "--seed", 5, "--system-prompt", "prompt.txt", "--json"),
        cwd=tmp_path,
        MY_KEY=KEY,
    ).ok()
    assert done.json["rollouts"] == done.json["model_calls"] == len(model.seen) == 8
    assert model.most_in_flight <= 3
    assert {seen.headers["authorization"] for seen in model.seen} == {f"Bearer {KEY}"}
    for body in (seen.json for seen in model.seen):
        assert (body["model"], body["temperature"], body["top_p"]) == ("org/some-model", 0.5, 0.9)
        assert body["max_tokens" if api == "chat" else "max_output_tokens"] == 77
        system, user = body["messages" if api == "chat" else "input"]
        assert system == {"role": "system", "content": "Antworte höflich.\n"}
        assert re.fullmatch(r"question [0-3] ✓ ü 你好", user["content"])
        names = [tool.get("name") or tool["function"]["name"] for tool in body["tools"]]
        assert names == ["add", "explode"]
    rows = rows_of(tmp_path / "x.jsonl")
    assert rows[0]["response"]["output"][-1]["content"][0]["text"] == "question 0 ✓ ü 你好"
    assert rows[0]["responses_create_params"]["temperature"] == 0.5
    assert done.json["tokens"] == {"prompt": 160, "generated": 40}


def test_the_api_key_is_openais_unless_named_and_stands_nowhere(
    tmp_path: Path, model: FakeProvider, moody: Path
) -> None:
    model.default = error(401, f"Incorrect API key provided: {KEY}.", "invalid_api_key")
    model.other["/v1/models"] = says("anything")
    tasks = write_rows(tmp_path / "t.jsonl", [asked("hi")])
    common = ("collect", tasks, "--env", moody, "--model", "m", "--base-url", model.url)
    by_default, missing = at_once(
        [*common, "-o", "a.jsonl", "--max-failed", "0", "--log-level", "debug"],
        [*common, "-o", "b.jsonl", "--api-key-env", "NOT_SET"],
        cwd=tmp_path,
        OPENAI_API_KEY=KEY,
    )
    assert by_default.code == 4, by_default.err
    assert {seen.headers["authorization"] for seen in model.seen} == {f"Bearer {KEY}"}
    (row,) = rows_of(tmp_path / "a.jsonl")
    assert (row["reward"], row["warren"]["error"]["kind"]) == (None, "model")
    assert missing.code == 2
    assert "NOT_SET" in missing.err
    written = [path.read_bytes() for path in tmp_path.iterdir()]
    for text in (by_default.out + by_default.err).encode(), *written:
        assert KEY.encode() not in text


def test_what_cant_be_reached_is_said_with_a_masked_password_and_exit_3(
    tmp_path: Path, calculator_tasks: Path
) -> None:
    port = free_port()
    common = ("collect", calculator_tasks, "--env", "calculator", "-o", "x.jsonl", "--model")
    redis = f"redis://:s3cret@127.0.0.1:{port}/0"
    broker = f"amqp://me:s3cret@127.0.0.1:{port}/"
    model, no_broker, no_redis = at_once(
        [*common, "m", "--base-url", f"http://127.0.0.1:{port}/v1"],
        [*common, "scripted", "--broker", broker, "--redis", redis],
        ["runs", "--redis", redis],
        cwd=tmp_path,
    )
    for done in (model, no_broker, no_redis):
        assert done.code == 3, done.err
        assert f"127.0.0.1:{port}" in done.err
        assert "s3cret" not in done.err
        assert "Traceback" not in done.err
        assert done.out == ""
    assert not (tmp_path / "x.jsonl").exists()


def test_limits_end_rollouts_as_truncated_or_failed(
    tmp_path: Path, model: FakeProvider, moody: Path
) -> None:
    tasks = write_rows(tmp_path / "t.jsonl", [asked("for ever"), asked("fine")])
    model.default = hangs
    steps, slow = at_once(
        [
            *("collect", tasks, "--env", moody, "--model", "scripted", "-o", "steps.jsonl"),
            *("--max-steps", "3", "--json", "-q"),
        ],
        [
            *("collect", tasks, "--env", moody, "--model", "m", "--base-url", model.url),
            *("-o", "slow.jsonl", "--timeout", "1", "--limit", "1", "--json", "-q"),
        ],
        cwd=tmp_path,
    )
    assert steps.ok().json["truncated"] == 1
    forever, fine = rows_of(tmp_path / "steps.jsonl")
    assert forever["warren"]["status"] == "truncated"
    assert forever["warren"]["error"]["kind"] == "budget"
    assert "3 steps" in forever["warren"]["error"]["message"]
    assert forever["reward"] == 0.5
    assert sum(i["type"] == "function_call" for i in forever["response"]["output"]) == 3
    assert fine["warren"]["status"] == "completed"
    assert slow.ok().json["truncated"] == 1
    (row,) = rows_of(tmp_path / "slow.jsonl")
    assert row["warren"]["error"]["kind"] == "budget"


def test_failures_go_to_their_file_count_against_the_limit_and_can_be_retried(
    tmp_path: Path, model: FakeProvider, moody: Path
) -> None:
    tasks = write_rows(tmp_path / "t.jsonl", [asked(f"question {i}") for i in range(5)])
    refused = error(400, "I don't like question 3")
    ill = {"on": True}

    async def behave(seen: Seen, writer: asyncio.StreamWriter) -> None:
        bad = "question 3" in seen.body.decode() and ill["on"]
        await (refused if bad else by_request(echo))(seen, writer)

    model.default = behave
    play = ("collect", tasks, "--env", moody, "--model", "m", "--base-url", model.url)
    common = (*play, "-o", "x.jsonl", "--failures", "failed.jsonl", "--json", "-q")
    first = warren(*common, "--max-failed", 0, cwd=tmp_path)
    assert first.code == 4
    assert first.json["failed_by_kind"] == {"model": 1}
    assert (first.json["rollouts"], first.json["failed"]) == (5, 1)
    assert ids_of(rows_of(tmp_path / "x.jsonl")) == [(i, 0) for i in (0, 1, 2, 4)]
    (failed,) = rows_of(tmp_path / "failed.jsonl")
    assert failed["reward"] is None
    assert failed["response"]["output"] == []
    assert "question 3" in failed["warren"]["error"]["message"]
    assert warren(*common, "--max-failed", 1, cwd=tmp_path).ok().json["failed"] == 1
    ill["on"] = False
    again = warren(*common, "--retry-failed", "--max-failed", 0, cwd=tmp_path).ok()
    assert (again.json["rollouts"], again.json["failed"]) == (5, 0)
    rows = rows_of(tmp_path / "x.jsonl")
    assert ids_of(rows) == [(i, 0) for i in range(5)]
    assert [row["warren"]["attempt"] for row in rows] == [1, 1, 1, 2, 1]


def test_parquet_has_the_same_rows(tmp_path: Path, calculator_tasks: Path) -> None:
    play = ("collect", calculator_tasks, "--env", "calculator", "--model", "scripted")
    common = (*play, "--repeats", "2", "--run", "same", "--json", "-q", "-o")
    jsonl, parquet = at_once([*common, "x.jsonl"], [*common, "x.parquet"], cwd=tmp_path)
    assert parquet.ok().json["outputs"] == ["x.parquet"]
    assert parquet.json["mean_reward"] == jsonl.ok().json["mean_reward"]
    table = pq.read_table(tmp_path / "x.parquet").to_pylist()
    rows = rows_of(tmp_path / "x.jsonl")
    by_id = {row["rollout_id"]: row for row in table}
    assert sorted(by_id) == sorted(row["warren"]["rollout_id"] for row in rows)
    assert len(table) == len(rows)
    for row in rows:
        assert by_id[row["warren"]["rollout_id"]]["reward"] == row["reward"]
    assert warren(*common, "x.parquet", cwd=tmp_path).ok().json["rollouts"] == len(rows)
    assert warren("audit", "x.parquet", cwd=tmp_path).code == 0
