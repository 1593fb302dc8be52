"""Conversations of which old parts are kept are sent as if nothing were kept."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker import codec
from workers.model_gateway import remarks as remarks_module
from workers.model_gateway.conversion import MALFORMED, as_items, messages_of
from workers.model_gateway.remarks import Remarks, chat_messages

#: What items hold where they are as they should be, and where they are not.
_leaves = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats()
_plain = st.recursive(
    _leaves | st.text(max_size=4) | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)
_types = ["message", "function_call", "function_call_output", "reasoning", "web_search_call", ""]
_part_types = ["input_text", "output_text", "text", "refusal", "input_image", "image_url", "odd"]
_parts = st.fixed_dictionaries(
    {"type": st.sampled_from(_part_types), "text": st.text(max_size=3)},
    optional={"refusal": _plain, "image_url": _plain},
)
_said = st.text(max_size=5) | st.lists(_parts, max_size=2)
_calls = st.lists(
    st.fixed_dictionaries(
        {"id": st.sampled_from(["a", ""])},
        optional={"function": st.fixed_dictionaries({"name": st.just("f"), "arguments": _said})},
    ),
    max_size=2,
)
_items = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(_types) | _plain,
        "role": st.sampled_from(["system", "developer", "user", "assistant", "tool"]) | _plain,
        "content": _said | _plain,
        "call_id": st.sampled_from(["a", "b"]) | _plain,
        "tool_call_id": st.just("a"),
        "name": st.just("f"),
        "arguments": st.just("{}") | _plain,
        "output": _said | _plain,
        "summary": _said | _plain,
        "tool_calls": _calls | _plain,
    },
)
_good = st.sampled_from(
    [
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "message", "role": "assistant", "content": "so"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "a", "output": "4"},
        {"role": "user", "content": "well?"},
        {"role": "developer", "content": "be brief"},
        {"role": "assistant", "content": "x", "tool_calls": [{"id": "b", "function": {}}]},
        {"role": "assistant", "reasoning_content": "y", "content": None, "tool_calls": [{}]},
        {"role": "tool", "tool_call_id": "b", "content": [{"type": "text", "text": "z"}]},
    ]
)


def _outcome(make: Callable[[], bytes]) -> object:
    try:
        return make()
    except MALFORMED as e:
        return type(e), str(e)


def _kept_nowhere(packed: Sequence[bytes]) -> bytes:
    items = [item for one in packed for item in as_items([codec.unpack(one)])]
    return msgspec.json.encode(messages_of(items))


@given(st.data())
def test_what_is_sent_is_the_same_whether_parts_of_it_are_kept_or_not(data: st.DataObject) -> None:
    kept = Remarks(kept=data.draw(st.sampled_from([2, 100])))
    said = data.draw(st.lists(st.one_of(_good, _good, _items), min_size=1, max_size=10))
    packed = [codec.pack(item) for item in said]
    for _ in range(4):
        begin = data.draw(st.integers(0, len(packed)))
        part = packed[begin : data.draw(st.integers(begin, len(packed)))]
        sent = _outcome(lambda part=part: bytes(chat_messages(kept.of(part))))  # type: ignore[misc]
        assert sent == _outcome(lambda part=part: _kept_nowhere(part))  # type: ignore[misc]


@given(st.lists(_good, max_size=6))
def test_items_are_the_same_before_and_after_they_were_sent(said: list[dict[str, Any]]) -> None:
    remarks = Remarks().of([codec.pack(item) for item in said])
    for _ in range(2):
        assert [item for remark in remarks for _, _, item in remark.said] == as_items(said)
        chat_messages(remarks)


def _called(n: int, arguments: str = "{}") -> bytes:
    return codec.pack(
        {"type": "function_call", "call_id": f"c{n}", "name": "f", "arguments": arguments}
    )


@pytest.fixture
def converted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many messages were made, by whom they are."""
    counts: Counter[str] = Counter()

    def counting(name: str) -> None:
        real = getattr(remarks_module, name)

        def counted(*args: Any) -> Any:
            counts[name] += 1
            return real(*args)

        monkeypatch.setattr(remarks_module, name, counted)

    counting("assistant_message")
    counting("other_message")
    return counts


def test_a_turn_is_put_into_words_once_for_all_calls_that_repeat_it(
    converted: Counter[str],
) -> None:
    kept, said = Remarks(), []
    for n in range(10):
        said += [codec.pack({"role": "user", "content": f"and {n}?"}), _called(n), _called(n + 50)]
        for _ in range(2):
            chat_messages(kept.of(said))
    assert converted == {"assistant_message": 10, "other_message": 10}


def test_what_is_large_is_not_kept(converted: Counter[str]) -> None:
    kept = Remarks()
    large, small = _called(1, "x" * 2100), [_called(n, "x" * 700) for n in range(3)]
    assert kept.of([large])[0] is not kept.of([large])[0]
    assert kept.of(small)[0] is kept.of(small)[0]
    quoted = [_called(n, "\0" * 900) for n in range(2)]
    for said in ([large], small, quoted[:1], quoted):  # as they are, together, when quoted
        converted.clear()
        for _ in range(2):
            chat_messages(kept.of(said))
        assert converted == {"assistant_message": 2}


def test_what_nobody_repeats_is_forgotten() -> None:
    kept = Remarks(kept=10)
    often, once = kept.of([_called(0)])[0], kept.of([_called(1)])[0]
    for n in range(2, 30):
        kept.of([_called(n)])
        assert kept.of([_called(0)])[0] is often
    assert kept.of([_called(1)])[0] is not once
