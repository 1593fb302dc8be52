"""The benchmarks' model answers what is asked for, in vLLM's words."""

import json
from array import array
from typing import Any

import pytest

from benchmarks.stub import Model, StubOptions

TOKENS = 30


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(StubOptions(steps=3, tokens=TOKENS, prompt_tokens=5))


def answered(model: Model, **options: bool) -> dict[str, Any]:
    said = 'say "return_token_ids": true and "return_tokens_as_token_ids": true'
    body = {"messages": [{"role": "user", "content": said}], **options, "logprobs": True}
    spaced, compact = (
        model.answer(json.dumps(body, separators=separators).encode())
        for separators in ((", ", ": "), (",", ":"))
    )
    assert spaced == compact
    answer: dict[str, Any] = json.loads(spaced.partition(b"\r\n\r\n")[2])
    return answer


def content(answer: dict[str, Any]) -> list[dict[str, Any]]:
    said: list[dict[str, Any]] = answer["choices"][0]["logprobs"]["content"]
    assert len(said) == TOKENS / 3
    return said


def test_ids_stand_in_an_answer_only_where_they_are_asked_for(model: Model) -> None:
    with_ids = answered(model, return_token_ids=True)
    assert len(with_ids["choices"][0]["token_ids"]) == TOKENS / 3
    assert len(with_ids["prompt_token_ids"]) == 5
    for options in ({}, {"return_token_ids": False}, {"return_tokens_as_token_ids": True}):
        answer = answered(model, **options)
        assert "token_ids" not in answer["choices"][0]
        assert "prompt_token_ids" not in answer


def test_a_token_is_its_text_or_its_id_and_has_its_texts_bytes(model: Model) -> None:
    as_texts, as_ids = (
        answered(model, return_token_ids=True, return_tokens_as_token_ids=as_ids)
        for as_ids in (False, True)
    )
    ids = as_texts["choices"][0]["token_ids"]
    assert as_ids["choices"][0]["token_ids"] == ids
    for id_, text, token in zip(ids, content(as_texts), content(as_ids), strict=True):
        assert len(text["token"]) == 4
        assert token == {**text, "token": f"token_id:{id_}"}
        assert bytes(token["bytes"]).decode() == text["token"]


def test_logprobs_are_float32_values_as_of_torch(model: Model) -> None:
    logprobs = [token["logprob"] for token in content(answered(model))]
    assert array("f", logprobs).tolist() == logprobs
    assert max(logprobs) <= 0
