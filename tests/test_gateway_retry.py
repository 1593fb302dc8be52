"""What is done about a failed try: pure decisions, and what the words of providers mean."""

import email.utils
import random
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.masking import Secret
from workers.model_gateway.backend import MAX_TRIES, ContextOverflow, Refused, Retryable
from workers.model_gateway.failures import retry_after_s, status_error
from workers.model_gateway.fields import chat_fields, responses_fields
from workers.model_gateway.masking import masked
from workers.model_gateway.retry import GiveUp, PutOff, Wait, decide

HOUR_S = 3600.0


def after(tries: int, left_s: float = HOUR_S, **error: Any) -> Wait | PutOff | GiveUp:
    return decide(Retryable("x", **error), tries=tries, left_s=left_s, chance=random.Random(1))


@given(st.integers(1, MAX_TRIES - 1), st.integers())
def test_backoff_is_jittered_and_capped(tries: int, seed: int) -> None:
    decision = decide(Retryable("x"), tries=tries, left_s=HOUR_S, chance=random.Random(seed))
    assert not isinstance(decision, GiveUp)
    assert decision.delay_s <= (5.0 if tries <= 12 else 30.0)
    assert isinstance(decision, Wait) is (decision.delay_s <= 2.0)


@given(st.floats(0.01, 600), st.integers(1, MAX_TRIES - 1), st.integers())
def test_no_wait_outlasts_the_deadline(left_s: float, tries: int, seed: int) -> None:
    decision = decide(Retryable("x"), tries=tries, left_s=left_s, chance=random.Random(seed))
    match decision:
        case Wait(delay_s):
            assert delay_s < left_s
        case PutOff(delay_s):
            rung_s = 5.0 if delay_s <= 5 else 30.0
            assert rung_s < left_s, "the ladder would bring it back too late"
        case GiveUp():
            assert left_s <= 0.2


def test_tries_end() -> None:
    assert after(MAX_TRIES) == GiveUp()
    assert after(2, max_tries=2) == GiveUp()


def test_retry_after_is_the_least_that_is_waited() -> None:
    decision = after(1, retry_after_s=7.0)
    assert isinstance(decision, PutOff)
    assert 7.0 <= decision.delay_s <= 7.9
    assert after(1, retry_after_s=7.0, left_s=6.0) == GiveUp()


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after": email.utils.formatdate(0, usegmt=True)}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "1.2.3"}, None),
        ({}, None),
    ],
)
def test_retry_after_headers(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_s(headers) == seconds


def test_a_retry_after_date_is_seconds_from_now() -> None:
    date = email.utils.formatdate(time.time() + 100, usegmt=True)
    assert retry_after_s({"retry-after": date}) == pytest.approx(100, abs=2)


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 504, 529])
def test_what_may_pass_is_retryable(status: int) -> None:
    error = status_error(status, "x", {})
    assert isinstance(error, Retryable)
    assert error.kind == ("model" if status in (409, 425, 429) else "infra")
    assert error.healthy is (status == 429)


def test_an_ordinary_bad_request_is_no_context_overflow() -> None:
    assert isinstance(status_error(400, "temperature must be positive", {}), Refused)
    said = "The decoder prompt (length 9) is longer than the maximum model length of 8."
    assert isinstance(status_error(400, said, {}), ContextOverflow)


def test_structured_output_and_reasoning_are_said_in_chats_words() -> None:
    form = {"type": "json_schema", "name": "answer", "schema": {"type": "object"}, "strict": True}
    options = {"text": {"format": form}, "reasoning": {"effort": "low"}, "top_logprobs": 2}
    assert chat_fields(options, length_field="max_tokens") == {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": {"type": "object"}, "strict": True},
        },
        "reasoning_effort": "low",
        "logprobs": True,
        "top_logprobs": 2,
    }


def test_metadata_of_gym_rows_becomes_fields() -> None:
    metadata = {"extra_body": '{"min_p": 0.1}', "chat_template_kwargs": '{"x": 1}', "who": "me"}
    assert responses_fields({"metadata": metadata}) == {
        "metadata": {"who": "me"},
        "min_p": 0.1,
        "chat_template_kwargs": {"x": 1},
    }


@given(st.text(min_size=8, alphabet=st.characters(codec="ascii", exclude_characters="*. ")))
def test_a_secret_never_survives(secret: str) -> None:
    assert secret not in masked(f"<< {secret} >>", [Secret(secret)])
