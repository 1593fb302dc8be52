"""What the words of providers mean, and how ours are said in theirs."""

import email.utils
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.masking import Secret
from workers.model_gateway.backend import ContextOverflow, Refused, Retryable
from workers.model_gateway.failures import retry_after_s, status_error
from workers.model_gateway.fields import chat_fields, responses_fields
from workers.model_gateway.masking import masked


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after": email.utils.formatdate(0, usegmt=True)}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "1.2.3"}, None),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "9" * 400}, None),
        ({"retry-after": "Mon, 99 Foo 2020 00:00:00 +9999999"}, None),
        ({"retry-after-ms": "nan"}, None),
        ({"retry-after-ms": "inf"}, None),
        ({"retry-after-ms": "-1"}, 0.0),
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
    assert chat_fields(options, length_field="max_tokens", tools=True) == {
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
