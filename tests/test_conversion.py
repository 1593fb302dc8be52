"""Responses items and chat messages: nothing is lost on the way there and back."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker import codec
from workers.model_gateway.answers import completed
from workers.model_gateway.backend import BackendRequest
from workers.model_gateway.conversion import (
    LOSSLESS,
    OPEN_SERVER,
    OPENAI,
    ChatMessage,
    Dialect,
    Unconvertible,
    as_items,
    assistant_items,
    chat_tools,
    items_of,
    messages_of,
)
from workers.model_gateway.remarks import Remark
from workers.spec import Item

texts = st.text(max_size=20)
some_text = st.text(min_size=1, max_size=20)
images = st.builds(
    lambda url, detail: {"type": "input_image", "image_url": url, "detail": detail},
    some_text,
    st.sampled_from(["low", "high", "auto"]),
)
text_parts = st.builds(lambda text: {"type": "input_text", "text": text}, texts)
files = st.builds(lambda id_: {"type": "input_file", "file_id": id_}, some_text)
audio = st.builds(
    lambda data: {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}, some_text
)
contents = st.one_of(
    texts,
    st.lists(st.one_of(text_parts, images, files, audio), min_size=2, max_size=4),
    images.map(lambda image: [image]),
)
others = st.builds(
    lambda role, content: {"type": "message", "role": role, "content": content},
    st.sampled_from(["system", "developer", "user"]),
    contents,
)
outputs = st.builds(
    lambda id_, output: {"type": "function_call_output", "call_id": id_, "output": output},
    some_text,
    contents,
)


def said(text: str) -> Item:
    part = {"type": "output_text", "text": text, "annotations": []}
    return {"type": "message", "role": "assistant", "content": [part]}


def refused(text: str, refusal: str) -> Item:
    whole = said(text)
    parts = whole["content"] if text else []
    return whole | {"content": [*parts, {"type": "refusal", "refusal": refusal}]}


def thought(text: str) -> Item:
    part = {"type": "reasoning_text", "text": text}
    return {"type": "reasoning", "summary": [], "content": [part]}


def called(call_id: str, name: str, arguments: str) -> Item:
    return {"type": "function_call", "call_id": call_id, "name": name, "arguments": arguments}


@st.composite
def assistant_turns(draw: st.DrawFn) -> list[Item]:
    items = [thought(draw(some_text))] if draw(st.booleans()) else []
    calls = draw(st.lists(st.builds(called, some_text, some_text, texts), max_size=3))
    if draw(st.booleans()) or not (items or calls):
        items.append(draw(st.builds(said, some_text) | st.builds(refused, texts, some_text)))
    return items + calls


@st.composite
def conversations(draw: st.DrawFn) -> list[Item]:
    items: list[Item] = []
    for _ in range(draw(st.integers(0, 4))):
        items += draw(st.lists(st.one_of(others, outputs), min_size=1, max_size=2))
        items += draw(assistant_turns())
    return items


@given(conversations())
def test_items_come_back_from_chat_messages_as_they_went(items: list[Item]) -> None:
    assert items_of(messages_of(items, LOSSLESS)) == items


@given(conversations())
def test_messages_come_back_from_items_as_they_went(items: list[Item]) -> None:
    messages = messages_of(items, LOSSLESS)
    assert messages_of(items_of(messages), LOSSLESS) == messages


@given(conversations(), st.sampled_from([OPEN_SERVER, OPENAI, LOSSLESS]))
def test_content_is_never_null(items: list[Item], dialect: Dialect) -> None:
    assert all(m["content"] is not None for m in messages_of(items, dialect))


@given(conversations())
def test_each_models_turn_is_one_message(items: list[Item]) -> None:
    roles = [m["role"] for m in messages_of(items)]
    assert all(pair != ("assistant", "assistant") for pair in itertools.pairwise(roles))


def test_reasoning_text_and_calls_of_one_answer_are_one_message() -> None:
    items = [
        thought("hm"),
        said("Let me add."),
        called("a", "add", '{"a": 1}'),
        called("b", "x", ""),
    ]
    assert messages_of(items) == [
        {
            "role": "assistant",
            "content": "Let me add.",
            "reasoning_content": "hm",
            "tool_calls": [
                {
                    "id": "a",
                    "type": "function",
                    "function": {"name": "add", "arguments": '{"a": 1}'},
                },
                {"id": "b", "type": "function", "function": {"name": "x", "arguments": ""}},
            ],
        }
    ]


def test_two_messages_in_a_row_stay_two() -> None:
    assert [m["content"] for m in messages_of([said("one"), said("two")])] == ["one", "two"]


def test_openai_gets_no_reasoning_back_and_others_no_developer() -> None:
    items = [{"role": "developer", "content": "be brief"}, thought("hm"), said("hi")]
    assert messages_of(items, OPENAI) == [
        {"role": "developer", "content": "be brief"},
        {"role": "assistant", "content": "hi"},
    ]
    assert messages_of(items, OPEN_SERVER)[0]["role"] == "system"


def test_an_empty_answer_is_an_empty_message() -> None:
    assert assistant_items({"role": "assistant", "content": None}) == [said("")]


@given(st.text())
def test_garbage_arguments_pass_as_the_model_wrote_them(arguments: str) -> None:
    message = {"tool_calls": [{"id": "1", "function": {"name": "f", "arguments": arguments}}]}
    assert assistant_items(message)[0]["arguments"] == arguments


def test_arguments_sent_as_an_object_become_text() -> None:
    message = {"tool_calls": [{"id": "1", "function": {"name": "f", "arguments": {"ü": 1}}}]}
    assert assistant_items(message)[0]["arguments"] == '{"ü": 1}'


@pytest.mark.parametrize("type_", ["web_search_call", "item_reference", ""])
def test_what_chat_cannot_say_is_an_error_not_a_loss(type_: str) -> None:
    with pytest.raises(Unconvertible, match="cannot be sent"):
        messages_of([{"type": type_}])
    with pytest.raises(Unconvertible, match="cannot be sent"):
        chat_tools([{"type": "web_search"}])


def test_chat_messages_in_a_dataset_become_items() -> None:
    messages: list[ChatMessage] = [
        {"role": "user", "content": "1 + 2?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "a", "function": {"name": "add", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "a", "content": "3"},
    ]
    assert as_items(messages) == [
        {"role": "user", "content": "1 + 2?"},
        called("a", "add", "{}"),
        {"type": "function_call_output", "call_id": "a", "output": "3"},
    ]


def request(*items: Item) -> BackendRequest:
    return BackendRequest(
        model="m",
        remarks=[Remark(codec.pack(item)) for item in items],
        rollout="run/0/0",
        path="1",
    )


def test_missing_and_repeated_call_ids_are_repaired_the_same_way_each_time() -> None:
    answer = [
        called("", "f", "{}"),
        called("c0", "f", "{}"),
        called("x", "f", "{}"),
        called("x", "f", ""),
    ]
    once = completed(answer, request(called("c0", "f", "{}")))
    assert once == completed(answer, request(called("c0", "f", "{}")))
    ids = [item["call_id"] for item in once]
    assert len({*ids, "c0"}) == 5
    assert ids[2] == "x", "an id that is its own is kept"
    assert all(len(id_) == 9 and id_.isalnum() for n, id_ in enumerate(ids) if n != 2)
    assert all(item["id"].startswith("fc_") for item in once)
