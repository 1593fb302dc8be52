"""The output row: a superset of NeMo Gym's, whole or not made, always valid JSON."""

import hashlib
import json
import math
from array import array
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker import codec
from broker.messages import Failure, Result, Sampling, Task, Tokens, Trajectory, Verdict
from sinks.rows import CREATE_PARAMS, NotARow, encode, failed_row, row_for, row_of
from sinks.tokens import listed, token_fields
from sinks.totals import Tally, add_totals
from tests.support.rollouts import TWO_STEPS, failed, model_call, result, said, tokens, tool_call

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=4)
    ),
    max_leaves=12,
)


def row(of: Result) -> dict[str, Any]:
    decoded = json.loads(row_for(of).data)
    assert isinstance(decoded, dict)
    return decoded


def test_a_scored_rollout_has_every_key_of_gyms_row() -> None:
    got = row(result(7, 2))
    assert got["reward"] == 1.0
    assert got["question"] == "1+1?"
    assert (got["_ng_task_index"], got["_ng_rollout_index"]) == (7, 2)
    assert got["agent_ref"] == {"type": "responses_api_agents", "name": "calculator"}
    assert list(got["responses_create_params"]) == list(CREATE_PARAMS)
    assert got["responses_create_params"]["input"] == [said("system", "Add."), said("user", "1+1?")]
    assert got["response"]["object"] == "response"
    assert got["response"]["status"] == "completed"
    assert got["response"]["usage"]["total_tokens"] == 30
    types = [item["type"] for item in got["response"]["output"]]
    assert types == ["function_call", "function_call_output", "message", "message"]


def test_tokens_stand_on_the_last_item_of_each_call_and_nowhere_else() -> None:
    output = row(result())["response"]["output"]
    assert output[0]["prompt_token_ids"] == [1, 2]
    assert output[0]["generation_token_ids"] == [3]
    assert output[3]["generation_token_ids"] == [5, 6]
    assert output[3]["generation_log_probs"] == [-0.5, -0.5]
    assert ["prompt_token_ids" in item for item in output] == [True, False, False, True]


def test_warrens_own_part_says_where_the_row_comes_from() -> None:
    own = row(result(7, 2))["warren"]
    assert own["rollout_id"] == "run-a/7/2"
    assert own["group_id"] == "run-a/7"
    assert own["status"] == "completed"
    assert own["error"] is None
    assert own["policy_version"] == {"min": 3, "max": 4}
    assert own["usage"]["cost_usd"] == 0.5
    assert (own["usage"]["model_calls"], own["usage"]["tool_calls"]) == (2, 1)
    assert [call["path"] for call in own["calls"]] == ["0", "0.tool.0", "1"]
    unhashed = hashlib.sha256(result(7, 2).trajectory).hexdigest()
    assert own["trajectory_sha256"] == unhashed, "its agent took none"
    assert own["branches"] == []


def test_given_indices_and_agent_are_honoured_and_form_the_group() -> None:
    given_row = b'{"_ng_task_index": 41, "_ng_rollout_index": 3, "agent_ref": {"name": "mine"}}'
    got = row(result(0, 0, row=given_row))
    assert (got["_ng_task_index"], got["_ng_rollout_index"]) == (41, 3)
    assert got["agent_ref"] == {"name": "mine"}
    assert got["warren"]["group_id"] == "run-a/41"


def test_the_request_shows_how_the_policy_was_really_asked() -> None:
    source = b'{"responses_create_params": {"input": "x", "temperature": 0.1, "user": "me"}}'
    base = result(row=source)
    trajectory = codec.read(Trajectory, base.trajectory)
    task = codec.read(Task, trajectory.task)
    changed = codec.pack(
        Trajectory(
            task=codec.pack(
                Task(
                    run=task.run,
                    generation=task.generation,
                    task_index=0,
                    repeat=0,
                    environment="calculator",
                    model="tiny",
                    row=source,
                    sampling=Sampling(temperature=0.9),
                )
            ),
            rollout=trajectory.rollout,
            epoch="e",
            attempt=1,
            status="completed",
            calls=TWO_STEPS,
            main="1",
            prompt_items=2,
            tools=codec.pack([{"type": "function", "name": "add"}]),
        )
    )
    params = row(
        Result(
            rollout_id="run-a/0/0",
            task_index=0,
            repeat=0,
            run="run-a",
            generation="g1",
            trajectory=changed,
            verdict=Verdict(reward=0.0),
        )
    )["responses_create_params"]
    assert (params["temperature"], params["user"]) == (0.9, "me")
    assert params["tools"] == [{"type": "function", "name": "add"}]
    assert len(params["input"]) == 2


def test_a_failed_rollout_has_an_empty_response_and_keeps_what_was_said_in_branches() -> None:
    got = row(failed(kind="infra"))
    assert got["reward"] is None
    assert got["response"]["output"] == []
    assert got["response"]["status"] == "failed"
    assert got["warren"]["status"] == "failed"
    assert got["warren"]["error"] == {"kind": "infra", "message": "broke", "where": ""}
    assert [branch["path"] for branch in got["warren"]["branches"]] == ["0", "1"]
    assert got["warren"]["branches"][1]["output"][-1]["generation_token_ids"] == [5, 6]


def test_a_rollout_that_failed_before_its_first_call_is_a_row() -> None:
    source = b'{"responses_create_params": {"input": "hello"}, "x": 1}'
    got = row(failed(row=source, calls=(), main=None, prompt_items=0))
    assert got["responses_create_params"]["input"] == "hello"
    assert got["response"]["usage"]["total_tokens"] == 0
    assert got["x"] == 1


def test_a_verifiers_failure_is_no_reward_zero_and_keeps_the_response() -> None:
    error = Failure(kind="verifier", message="judge is down")
    got = row(result(verdict=Verdict(reward=None, error=error)))
    assert got["reward"] is None
    assert got["warren"]["status"] == "failed"
    assert got["warren"]["error"]["kind"] == "verifier"
    assert len(got["response"]["output"]) == 4


@pytest.mark.parametrize("reward", [math.nan, math.inf])
def test_a_reward_that_is_no_number_is_the_verifiers_failure(reward: float) -> None:
    got = row(result(verdict=Verdict(reward=reward, components=(("a", reward),))))
    assert got["reward"] is None
    assert got["warren"]["error"]["kind"] == "verifier"
    assert "reward_components" not in got


def test_components_stand_at_the_top_and_in_warren() -> None:
    got = row(result(verdict=Verdict(reward=0.75, components=(("a", 0.5), ("b", 0.25)))))
    assert got["reward_components"] == got["warren"]["reward_components"] == {"a": 0.5, "b": 0.25}


FLOATS = st.floats(width=32) | st.sampled_from([math.inf, -math.nan, 3.4e38, -3.4e38])


@given(ids=st.lists(st.integers(-(2**31), 2**31 - 1)), sampled=st.lists(FLOATS))
def test_token_fields_are_the_arrays_numbers_unless_a_logprob_is_not_finite(
    ids: list[int], sampled: list[float]
) -> None:
    prompt, logprobs = array("i", ids), array("f", sampled)
    generated = array("i", range(len(sampled)))
    fields = token_fields(
        Tokens(
            prompt_ids=prompt.tobytes(),
            generated_ids=generated.tobytes(),
            logprobs=logprobs.tobytes(),
        )
    )
    whole: dict[str, array[Any]] = {
        "prompt_token_ids": prompt,
        "generation_token_ids": generated,
        "generation_log_probs": logprobs,
    }
    assert fields == (whole if all(map(math.isfinite, logprobs)) else None)
    if fields is not None:  # as a row has them
        assert [listed(a) for a in fields.values()] == [list(a) for a in whole.values()]


@pytest.mark.parametrize(
    "broken",
    [
        tokens([1], [2], math.nan),
        tokens([1], [2], -math.inf),
        Tokens(prompt_ids=b"", generated_ids=array("i", [1]).tobytes(), logprobs=b""),
        Tokens(prompt_ids=b"123", generated_ids=b"", logprobs=b""),
    ],
    ids=["nan", "inf", "misaligned", "cut"],
)
def test_token_fields_are_all_or_nothing(broken: Tokens) -> None:
    call = model_call("0", [said("user", "a")], [said("assistant", "b")], tokens=broken)
    (item,) = row(result(calls=(call,), main="0", prompt_items=1))["response"]["output"]
    assert item == said("assistant", "b")


def test_tokens_of_a_call_that_wrote_no_item_stand_with_the_call() -> None:
    call = model_call("0", [said("user", "a")], [], tokens=tokens([1], [2]))
    got = row(result(calls=(call,), main="0", prompt_items=1))
    assert got["warren"]["calls"][0]["tokens"]["generation_token_ids"] == [2]


def test_other_branches_keep_their_items_and_tokens() -> None:
    fork = model_call(
        "0b",
        [said("user", "?")],
        [said("assistant", "!")],
        parent="0",
        shared=2,
        tokens=tokens([9], [8]),
    )
    (branch,) = row(result(calls=(*TWO_STEPS, fork)))["warren"]["branches"]
    assert (branch["path"], branch["parent"], branch["shared_items"]) == ("0b", "0", 2)
    assert branch["input"] == [said("user", "?")]
    assert branch["output"][0]["prompt_token_ids"] == [9]


def test_a_tool_output_that_the_policy_never_saw_stands_with_its_call() -> None:
    got = row(result(calls=(*TWO_STEPS, tool_call("own.0", "secret"))))
    by_path = {call["path"]: call for call in got["warren"]["calls"]}
    assert by_path["own.0"]["output"] == "secret"
    assert "output" not in by_path["0.tool.0"]


def test_judges_are_accounted_apart() -> None:
    judge = model_call("verify.0", [said("user", "good?")], [said("assistant", "yes")])
    made = row_for(result(verdict=Verdict(reward=1.0, calls=(judge,))))
    own = json.loads(made.data)["warren"]
    assert own["usage"]["model_calls"] == 2
    assert own["verifier"]["usage"]["model_calls"] == 1
    assert own["verifier"]["branches"][0]["output"] == [said("assistant", "yes")]
    assert made.summary.cost_usd == 0.75


@pytest.mark.parametrize("reason", ["max_output_tokens", "content_filter"])
def test_a_truncated_rollout_says_why(reason: str) -> None:
    finish = "content_filter" if reason == "content_filter" else "length"
    call = model_call("0", [said("user", "a")], [said("assistant", "b")], finish_reason=finish)
    made = result(calls=(call,), main="0", prompt_items=1, status="truncated")
    response = row(made)["response"]
    assert response["status"] == "incomplete"
    assert response["incomplete_details"] == {"reason": reason}


@pytest.mark.parametrize(
    "bad",
    [
        result(row=b"not json"),
        result(row=b"[1]"),
        result(row=b'{"a": NaN}'),
        result(calls=(b"\xc1",)),
        result(main="nowhere"),
        result(calls=(model_call("1", [], [], parent="0", shared=9),)),
        Result(
            rollout_id="run-a/0/0",
            task_index=0,
            repeat=0,
            run="run-a",
            generation="g1",
            trajectory=b"\xc1",
            verdict=Verdict(reward=1.0),
        ),
    ],
    ids=["no json", "no object", "nan", "calls", "main", "forest", "trajectory"],
)
def test_what_can_not_be_a_row_becomes_a_failed_row_that_says_why(bad: Result) -> None:
    with pytest.raises(NotARow):
        row_of(bad)
    got = row(bad)
    assert got["reward"] is None
    assert got["warren"]["error"]["kind"] == "infra"
    assert got["warren"]["rollout_id"] == "run-a/0/0"
    assert got["response"]["output"] == []


def test_nan_inside_an_item_is_null_in_the_row() -> None:
    call = model_call("0", [said("user", "a")], [{"type": "message", "score": math.nan}])
    data = row_for(result(calls=(call,), main="0", prompt_items=1)).data
    assert b"NaN" not in data
    assert json.loads(data)["response"]["output"][0]["score"] is None


def test_the_summary_says_what_totals_need() -> None:
    good, bad = row_for(result(7, 2)).summary, row_for(failed(8, kind="tool")).summary
    assert (good.task_index, good.repeat, good.status, good.error_kind) == (7, 2, "completed", None)
    tally = Tally()
    tally.add(good)
    tally.add(bad)
    totals = add_totals([tally.totals(), tally.totals()])
    assert (totals.completed, totals.failed, totals.failed_by_kind) == (2, 2, {"tool": 2})
    assert (totals.reward_sum, totals.rewarded) == (2.0, 2)
    assert (totals.model_calls, totals.tool_calls, totals.generated_tokens) == (8, 4, 40)


@given(st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=8), JSON, max_size=5))
def test_every_key_of_the_tasks_row_is_kept(source: dict[str, Any]) -> None:
    ours = {"responses_create_params", "response", "reward", "reward_components", "warren"}
    ours |= {"_ng_task_index", "_ng_rollout_index", "agent_ref"}
    got = row(result(row=json.dumps(source).encode()))
    assert {k: v for k, v in got.items() if k not in ours} == {
        k: v for k, v in source.items() if k not in ours
    }


@given(st.lists(st.tuples(st.integers(0, 2**31 - 1), st.floats(-50, 0, width=32)), max_size=20))
def test_tokens_and_logprobs_come_out_as_the_engine_gave_them(
    sampled: list[tuple[int, float]],
) -> None:
    ids, logprobs = [i for i, _ in sampled], [p for _, p in sampled]
    given_tokens = Tokens(
        prompt_ids=array("i", [7]).tobytes(),
        generated_ids=array("i", ids).tobytes(),
        logprobs=array("f", logprobs).tobytes(),
    )
    call = model_call("0", [said("user", "a")], [said("assistant", "b")], tokens=given_tokens)
    (item,) = row(result(calls=(call,), main="0", prompt_items=1))["response"]["output"]
    assert item["generation_token_ids"] == ids
    assert item["generation_log_probs"] == logprobs


@given(st.binary(max_size=200))
def test_no_trajectory_can_stop_a_row(trajectory: bytes) -> None:
    made = Result(
        rollout_id="run-a/5/1",
        task_index=5,
        repeat=1,
        run="run-a",
        generation="g1",
        trajectory=trajectory,
        verdict=Verdict(reward=1.0),
    )
    assert row_for(made).summary.rollout_id == "run-a/5/1"
    assert encode(failed_row(made, "x")).summary.error_kind == "infra"
