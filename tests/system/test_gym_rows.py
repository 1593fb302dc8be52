"""NeMo Gym's rows, as its environments have them: read as they are, kept as they are, played."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import by_request, ids_of, question, rows_of, warren
from tests.support.provider import FakeProvider, chat, tool_call

COUNTER: dict[str, Any] = {
    "type": "function",
    "name": "increment_counter",
    "description": "",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"count": {"type": "integer", "description": ""}},
        "required": ["count"],
        "additionalProperties": False,
    },
}


def agent(name: str) -> dict[str, str]:
    return {"type": "responses_api_agents", "name": name}


#: In the shapes of Gym's own example.jsonl files (shared/reference/nemo_gym.md, 2.1).
ROWS: dict[str, dict[str, Any]] = {
    "example_session_state_mgmt": {
        "responses_create_params": {
            "input": [{"role": "user", "content": "add 1 then add 2 then get the count"}],
            "tools": [COUNTER],
            "parallel_tool_calls": False,
            "temperature": 1.0,
            "max_output_tokens": 2048,
            "metadata": {"extra_body": '{"seed": 3, "top_k": 20}'},
        },
        "agent_ref": agent("example_session_state_mgmt_simple_agent"),
        "initial_count": 3,
        "expected_count": 6,
    },
    "code_gen": {
        "responses_create_params": {
            "input": [
                {"role": "system", "content": "You are a coder."},
                {"role": "user", "content": "Read n, print n + 1.", "type": "message"},
            ]
        },
        "verifier_metadata": {"unit_tests": {"inputs": ["1\n"], "outputs": ["2\n"]}},
        "hash_id": "f7a3",
        "dataset": "taco",
        "license": None,
    },
    "mcqa": {
        "responses_create_params": {
            "input": "Which one? A or B",
            "instructions": "Answer with a letter.",
            "top_p": 0.95,
            "text": {"format": {"type": "text"}},
        },
        "options": [{"A": "ja"}, {"B": "nein"}],
        "expected_answer": "B",
        "grading_mode": "strict_single_letter_boxed",
        "uuid": "4e6c3d1c-0000-5000-8000-000000000000",
    },
    "workplace_assistant": {
        "responses_create_params": {
            "input": [
                {"role": "user", "content": "Mail Ann."},
                {"type": "reasoning", "id": "rs_1", "summary": []},
                {
                    "type": "function_call",
                    "call_id": "call_9",
                    "name": "company_directory_find_email_address",
                    "arguments": '{"name": "Ann"}',
                },
                {"type": "function_call_output", "call_id": "call_9", "output": "ann@x.org"},
            ],
            "tools": [COUNTER],
            "tool_choice": "auto",
            "user": "trainer",
            "reasoning": {"effort": "low"},
        },
        "ground_truth": [{"name": "send", "arguments": "{}"}],
        "category": "email",
        "environment_name": "workplace_assistant",
    },
    "math_with_judge": {
        "responses_create_params": {
            "input": [
                {
                    "role": "user",
                    "content": [{"type": "input_text", "text": "Wie viel ist 2⁴? 🤔"}],
                }
            ],
            "metadata": {"chat_template_kwargs": '{"enable_thinking": false}'},
            "background": False,
            "include": None,
            "stream": False,
            "model": "ignored",
        },
        "question": "2⁴?",
        "expected_answer": "16",
        "_ng_task_index": 41,
        "_ng_rollout_index": 7,
        "_ng_attempt_index": 2,
        "_ng_rollout_id": "41-7",
        "skills_ref": {"path": "skills"},
        "nested": {"deep": [1, 2.5, {"x": None}], "big": 12345678901234567890},
    },
}


def answer(body: Any) -> Any:
    """Call the tool that only the row has, then one that nobody has, then answer."""
    outputs = [m["content"] for m in body["messages"] if m["role"] == "tool"]
    if question(body).startswith("add 1") and len(outputs) < 2:
        name = "increment_counter" if not outputs else "ad"
        call = tool_call(name, '{"count": 1}', f"call_{len(outputs)}")
        return chat({"role": "assistant", "content": None, "tool_calls": [call]}, "tool_calls")
    return chat({"role": "assistant", "content": "B"})


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The output rows and the requests that the model got, by the row's name."""
    from tests.support.command import provider

    folder = tmp_path_factory.mktemp("gym")
    lines = [json.dumps(row, ensure_ascii=False) for row in ROWS.values()]
    (folder / "example.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    moody = Path(__file__).parent / "environments" / "moody.py"
    with provider(by_request(answer)) as model:
        words = ("collect", "example.jsonl", "--env", moody, "--model", "policy", "-q", "--json")
        done = warren(*words, "--base-url", model.url, "-o", "out.jsonl", cwd=folder).ok()
        assert done.json["completed"] == len(ROWS), done.json
        rows = rows_of(folder / "out.jsonl")
        return dict(zip(ROWS, rows, strict=True)), _requests(model)


def _requests(model: FakeProvider) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {name: [] for name in ROWS}
    for body in (seen.json for seen in model.seen):
        said = json.dumps(body["messages"], ensure_ascii=False)
        for name, mark in zip(ROWS, ("add 1", "n + 1", "Which", "Ann", "2⁴"), strict=True):
            if mark in said:
                found[name].append(body)
    return found


@pytest.mark.parametrize("name", ROWS)
def test_every_key_of_a_row_is_on_the_output_row_unchanged(played: Any, name: str) -> None:
    rows, _ = played
    given, row = ROWS[name], rows[name]
    for key, value in given.items():
        if key != "responses_create_params":
            assert row[key] == value, key
    params = row["responses_create_params"]
    for key, value in given["responses_create_params"].items():
        if key == "input":
            items = [{"role": "user", "content": value}] if isinstance(value, str) else value
            assert params["input"][-len(items) :] == items
        elif key == "tools":
            assert [tool for tool in params["tools"] if tool in value] == value
        else:
            assert params[key] == value, key
    assert len(params) >= 23  # all of Gym's, nulls included


def test_indices_that_a_row_brings_are_kept_and_make_its_group(played: Any) -> None:
    rows, _ = played
    own = rows["math_with_judge"]["warren"]
    assert (own["task_index"], own["repeat_index"]) == (4, 0)
    assert own["group_id"].endswith("/41")
    assert ids_of(list(rows.values())) == [(i, 0) for i in range(len(ROWS))]
    assert [row["_ng_task_index"] for row in rows.values()] == [0, 1, 2, 3, 41]


def test_tools_that_only_the_row_has_are_offered_and_a_call_of_one_is_told(played: Any) -> None:
    rows, requests = played
    name = "example_session_state_mgmt"
    offered = [tool["function"]["name"] for tool in requests[name][0]["tools"]]
    assert offered == ["add", "explode", "increment_counter"]
    outputs = [
        item["output"]
        for item in rows[name]["response"]["output"]
        if item["type"] == "function_call_output"
    ]
    assert "increment_counter" in outputs[0]
    assert "add, explode" in outputs[0]
    assert "Did you mean 'add'" in outputs[1]
    assert requests[name][2]["messages"][-1]["content"] == outputs[1]


def test_what_a_row_asks_of_the_model_reaches_it(played: Any) -> None:
    _, requests = played
    (first, *_) = requests["example_session_state_mgmt"]
    assert (first["temperature"], first["max_tokens"]) == (1.0, 2048)
    assert (first["parallel_tool_calls"], first["seed"], first["top_k"]) == (False, 3, 20)
    assert "metadata" not in first
    assert {body["model"] for bodies in requests.values() for body in bodies} == {"policy"}
    (coder,) = requests["code_gen"]
    assert [m["role"] for m in coder["messages"]] == ["system", "user"]
    assert coder["messages"][0]["content"] == "You are a coder."
    (choice,) = requests["mcqa"]
    assert choice["messages"][0] == {"role": "system", "content": "Answer with a letter."}
    assert choice["messages"][1] == {"role": "user", "content": "Which one? A or B"}
    assert choice["top_p"] == 0.95
    (errand,) = requests["workplace_assistant"]
    assert (errand["user"], errand["reasoning_effort"]) == ("trainer", "low")
    assert [m["role"] for m in errand["messages"]] == ["system", "user", "assistant", "tool"]
    (thinker,) = requests["math_with_judge"]
    assert thinker["chat_template_kwargs"] == {"enable_thinking": False}
    assert thinker["messages"][-1]["content"] == "Wie viel ist 2⁴? 🤔"
