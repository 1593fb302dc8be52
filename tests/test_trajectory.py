"""Reading trajectories: branches, transcripts, and segments whose tokens are the engine's."""

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker import codec, trajectory
from broker.errors import Undecodable
from broker.messages import CallRecord, ModelResult, Tokens, ToolResult

Item = dict[str, object]


def said(role: str, text: str) -> Item:
    return {"role": role, "content": text}


def model_call(
    path: str,
    new: list[Item],
    output: list[Item],
    *,
    parent: str | None = None,
    shared: int = 0,
    tokens: Tokens | None = None,
) -> bytes:
    return codec.pack(
        CallRecord(
            path=path,
            kind="model",
            parent=parent,
            shared_items=shared,
            new_items=tuple(codec.pack(item) for item in new),
            result=codec.pack(ModelResult(items=codec.pack(output), tokens=tokens)),
        )
    )


def tool_call(path: str) -> bytes:
    return codec.pack(CallRecord(path=path, kind="tool", result=codec.pack(ToolResult(output="4"))))


def tokens(prompt: list[int], generated: list[int]) -> Tokens:
    return Tokens(
        prompt_ids=array("i", prompt).tobytes(),
        generated_ids=array("i", generated).tobytes(),
        logprobs=array("f", [-0.5] * len(generated)).tobytes(),
    )


TWO_STEPS = [
    model_call("0", [said("user", "2+2?")], [said("assistant", "calls")]),
    tool_call("0.tool.0"),
    model_call("1", [said("tool", "4")], [said("assistant", "It is 4")], parent="0", shared=2),
]


def test_a_conversation_is_rebuilt_from_its_parents() -> None:
    nodes = trajectory.forest(TWO_STEPS)
    texts = [item["content"] for item in trajectory.conversation(nodes, "1")]
    assert texts == ["2+2?", "calls", "4", "It is 4"]
    assert [item["content"] for item in trajectory.call_input(nodes, "1")] == texts[:3]


def test_a_transcript_says_which_call_wrote_each_item() -> None:
    nodes = trajectory.forest(TWO_STEPS)
    tail = [codec.pack(said("tool", "unanswered"))]
    assert [e.call for e in trajectory.transcript(nodes, "1", tail)] == [None, "0", None, "1", None]


def test_a_rollout_without_calls_is_its_tail() -> None:
    entries = trajectory.transcript({}, None, [codec.pack(said("user", "hi"))])
    assert [e.item["content"] for e in entries] == ["hi"]


def test_a_trimmed_history_leaves_the_conversation_but_stays_in_the_transcript() -> None:
    nodes = trajectory.forest(
        [
            *TWO_STEPS,
            model_call("2", [said("user", "summary")], [said("assistant", "ok")], parent="1"),
        ]
    )
    assert [i["content"] for i in trajectory.conversation(nodes, "2")] == ["summary", "ok"]
    assert len(trajectory.transcript(nodes, "2")) == 6


def test_each_branch_has_one_end() -> None:
    fork = model_call("1b", [], [said("assistant", "other")], parent="0", shared=2)
    assert trajectory.branch_ends(trajectory.forest([*TWO_STEPS, fork])) == ["1", "1b"]


@pytest.mark.parametrize(
    ("calls", "path"),
    [
        ([], "0"),
        ([tool_call("0.tool.0")], "0.tool.0"),
        ([model_call("1", [], [], parent="0", shared=1)], "1"),
        ([model_call("0", [], [], shared=1)], "0"),
        ([model_call("0", [], [], parent="0")], "0"),
        ([model_call("0", [], [], parent="1"), model_call("1", [], [], parent="0")], "1"),
    ],
    ids=["no call", "a tool", "no parent", "too much shared", "its own parent", "a circle"],
)
def test_a_record_that_contradicts_itself_is_undecodable(calls: list[bytes], path: str) -> None:
    with pytest.raises(Undecodable):
        trajectory.conversation(trajectory.forest(calls), path)


def test_prompts_that_extend_what_was_said_make_one_segment() -> None:
    (segment,) = trajectory.segments([tokens([1, 2], [3, 4]), tokens([1, 2, 3, 4, 9], [5])])
    assert segment.ids.tolist() == [1, 2, 3, 4, 9, 5]
    assert segment.mask.tolist() == [0, 0, 1, 1, 0, 1]
    assert segment.logprobs.tolist() == [0.0, 0.0, -0.5, -0.5, 0.0, -0.5]
    assert segment.prompt_tokens == 2


def test_a_prompt_that_drops_tokens_begins_a_new_segment() -> None:
    first, second = trajectory.segments([tokens([1, 2], [3]), tokens([1, 2, 7], [8])])
    assert first.ids.tolist() == [1, 2, 3]
    assert second.ids.tolist() == [1, 2, 7, 8]
    assert second.prompt_tokens == 3


def test_misaligned_token_arrays_are_undecodable() -> None:
    with pytest.raises(Undecodable):
        trajectory.segments([Tokens(prompt_ids=b"", generated_ids=b"1234", logprobs=b"")])
    with pytest.raises(Undecodable):
        trajectory.ints(b"123")


Ids = st.lists(st.integers(0, 3), max_size=4)


@given(st.lists(st.tuples(Ids, Ids), max_size=6))
def test_segments_agree_with_the_rule_of_the_trainers(
    calls: list[tuple[list[int], list[int]]],
) -> None:
    expected: list[tuple[list[int], list[int]]] = []
    for prompt, generated in calls:  # the reference loop of trainers.md, section 2
        if not expected or prompt[: len(expected[-1][0])] != expected[-1][0]:
            expected.append(([], []))
        ids, mask = expected[-1]
        new = prompt[len(ids) :]
        ids += new + generated
        mask += [0] * len(new) + [1] * len(generated)
    got = trajectory.segments(tokens(prompt, generated) for prompt, generated in calls)
    assert [(s.ids.tolist(), s.mask.tolist()) for s in got] == expected


def test_only_calls_with_tokens_count_for_training() -> None:
    nodes = trajectory.forest(
        [
            model_call("0", [said("user", "a")], [said("assistant", "b")], tokens=tokens([1], [2])),
            model_call("1", [], [], parent="0", shared=2),
        ]
    )
    assert len(trajectory.branch_tokens(nodes, "1")) == 1
