"""The built-in environments: their rewards agree with the answers' ground truth."""

import json
from collections.abc import Sequence
from typing import Any, cast

import pytest

from broker.messages import Usage
from environments.dialogue import booking
from environments.search import DOCUMENTS, read, search
from environments.workplace import Email, Office, office, send_email, set_stage
from warren import Item, Rollout, VerifierContext, load_environment

NOBODY = cast(VerifierContext, None)


def finished(
    task: dict[str, Any], answer: str, *, output: Sequence[Item] = (), state: object = None
) -> Rollout:
    message = {"type": "message", "role": "assistant", "content": answer}
    return Rollout(
        rollout_id="r/0/0",
        task=task,
        prompt=[{"role": "user", "content": "question"}],
        output=[*output, message],
        status="completed",
        error=None,
        state=state,
        session=None,
        steps=1,
        usage=Usage(),
    )


async def rewards(name: str, rollout: Rollout) -> dict[str, float]:
    parts = load_environment(name).spec().rewards
    return {part.name: part.weight * await part.run(rollout, NOBODY) for part in parts}


@pytest.mark.parametrize(
    ("answer", "reward"),
    [
        (r"Thus \boxed{0.5}.", 1.0),
        (r"\boxed{½}", 1.0),
        (r"\boxed{\frac{1}{2}} or \boxed{2}", 0.0),
        ("It is one half.", 0.0),
        ("", 0.0),
    ],
)
async def test_math_rewards_agree_with_the_truth(answer: str, reward: float) -> None:
    task = {"expected_answer": r"\frac{1}{2}"}
    assert await rewards("math", finished(task, answer)) == {"correct": reward}


def reads(*documents: str, tool: str = "read") -> list[Item]:
    items: list[Item] = []
    for n, id_ in enumerate(documents):
        arguments = json.dumps({"document_id": id_})
        text = DOCUMENTS[id_]["text"] if id_ in DOCUMENTS else "Error"
        call = {"type": "function_call", "name": tool, "call_id": f"c{n}", "arguments": arguments}
        items += [call, {"type": "function_call_output", "call_id": f"c{n}", "output": text}]
    return items


@pytest.mark.parametrize(
    ("answer", "documents", "expected"),
    [
        ("Ingrid Solheim", ["tarn-01", "tarn-02"], (0.7, 0.3)),
        ("I looked it up.\n\n**ingrid  SOLHEIM.**", ["tarn-01"], (0.7, 0.15)),
        ("Ｉngrid Solheim", [], (0.7, 0.0)),
        ("Ingrid Solheim or Jonas Falk", ["tarn-01", "tarn-02"], (0.0, 0.3)),
        ("Ingrid Solheim\nI hope this helps!", ["tarn-99"], (0.0, 0.0)),
        ("", ["tarn-03", "tarn-04", "tarn-05", "tarn-06", "tarn-07", "tarn-01"], (0.0, 0.0)),
        ("Solheim", ["tarn-02"] * 3, (0.0, 0.15)),
        ("The Ingrid Solheim", [], (0.7, 0.0)),
        ("It was Ingrid Solheim", [], (0.0, 0.0)),
        ("Ingrid Solheim, Jonas Falk", [], (0.0, 0.0)),
        ("Solheim, Ingrid", [], (0.0, 0.0)),
        ("Ingrid Solheim\n\n  ", [], (0.7, 0.0)),
        ("not Ingrid Solheim", [], (0.0, 0.0)),
        ("the", [], (0.0, 0.0)),
    ],
)
async def test_search_rewards_agree_with_the_truth(
    answer: str, documents: list[str], expected: tuple[float, float]
) -> None:
    task = {"expected_answer": "Ingrid Solheim", "documents": ["tarn-01", "tarn-02"]}
    got = await rewards("search", finished(task, answer, output=reads(*documents)))
    assert (got["answer"], got["retrieval"]) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "expected", "right"),
    [
        ("1,200", "1200", True),
        ("1200.", "1,200", True),
        ("1,20", "120", False),
        ("12 00", "1200", False),
        ("Skerry", "the Skerry", True),
        ("Vitamin A", "Vitamin", False),
        ("A", "A", True),
    ],
)
async def test_an_answers_words_are_what_counts(answer: str, expected: str, right: bool) -> None:
    task = {"expected_answer": expected, "documents": ["tarn-01"]}
    assert (await rewards("search", finished(task, answer)))["answer"] == 0.7 * right


async def test_naming_documents_without_reading_them_is_worth_nothing() -> None:
    task = {"expected_answer": "1898", "documents": ["tarn-01"]}
    for output in (reads("tarn-01", tool="search"), reads("tarn-99")):
        got = await rewards("search", finished(task, "1900", output=output))
        assert got["retrieval"] == 0.0


async def test_search_ranks_what_fits_first() -> None:
    assert (await search("who designed the lighthouse on Skerry"))[0]["id"] == "tarn-01"
    assert (await search("TOBIAS RENN"))[0]["id"] == "tarn-14"
    assert await search("xyzzy") == []
    assert await search("") == []
    assert "Solheim" in await read("tarn-01")
    with pytest.raises(ValueError, match="no document"):
        await read("../../etc/passwd")


@pytest.mark.parametrize(
    ("constraints", "answer", "kept"),
    [
        ({"max_words": 3}, "one two three", 1),
        ({"max_words": 3}, "one two three-four", 0),
        ({"min_words": 2}, "don’t stop", 1),
        ({"words": 2}, "naïve café", 1),
        ({"words": 2}, "nai\u0308ve cafe\u0301", 1),
        ({"words": 3}, "火 is fire", 1),
        ({"sentences": 2}, "Yes. It costs 3.5 crowns!", 1),
        ({"sentences": 1}, "Wait... what?", 0),
        ({"bullets": 2}, "- a\n* b\nc", 1),
        ({"bullets": 2}, "-a\n- \n- b", 0),
        ({"contains": "north sea"}, "The NORTH  Sea, again", 1),
        ({"contains": "sea"}, "seasons", 0),
        ({"avoids": "fog"}, "foggy", 1),
        ({"avoids": "fog"}, "It is FOG.", 0),
        ({"starts_with": "Dear Ada"}, "  Dear Ada, hello", 1),
        ({"starts_with": "Dear Ada"}, "dear ada", 0),
        ({"ends_with": "Bye."}, "So long. Bye.\n", 1),
        ({"ends_with": "Bye."}, "Bye. P.S.", 0),
        ({"lower_case": True}, "straße 7", 1),
        ({"upper_case": True}, "STRASSE É", 1),
        ({"upper_case": True}, "STRAßE", 0),
        ({"no_commas": True}, "a; b", 1),
        ({"no_commas": True}, "a, b", 0),
        ({"json": ["a", "b"]}, '{"b": 1, "a": null}', 1),
        ({"json": ["a"]}, '```json\n{"a": 1}\n```', 0),
        ({"json": ["a"]}, '{"a": 1, "b": 2}', 0),
        ({"json": ["a"]}, "[" * 100_000, 0),
        ({"json": ["a"]}, "9" * 10_000, 0),
        ({"avoids": "fog"}, "", 0),
        ({"max_words": 5, "lower_case": True, "no_commas": True}, "Three Words here", 2),
    ],
)
async def test_instructions_rewards_agree_with_the_truth(
    constraints: dict[str, Any], answer: str, kept: int
) -> None:
    got = await rewards("instructions", finished({"constraints": constraints}, answer))
    assert got["fraction"] == pytest.approx(0.5 * kept / len(constraints))
    assert got["all_satisfied"] == (0.5 if kept == len(constraints) else 0.0)


def first_office() -> tuple[dict[str, Any], Office]:
    tasks = load_environment("workplace").tasks
    assert tasks is not None
    task = next(
        json.loads(line) for line in tasks.read_text("utf-8").splitlines() if "Welcome" in line
    )
    return task, office(task)


async def test_a_workplace_is_done_when_its_tables_are_as_expected() -> None:
    task, state = first_office()
    assert await rewards("workplace", finished(task, "Done.", state=state)) == {"done": 0.0}
    await set_stage(state, "ada.berg@nordlys.example", "customer")
    await send_email(state, "ada.berg@nordlys.example", "Welcome", "Hello Ada")
    state.contacts.reverse()
    assert await rewards("workplace", finished(task, "Done.", state=state)) == {"done": 1.0}
    state.outbox.append(Email("ben@okoro.example", "Welcome", "Hello Ben"))
    assert await rewards("workplace", finished(task, "Done.", state=state)) == {"done": 0.0}


def test_what_can_harm_is_declared_so() -> None:
    tools = load_environment("workplace").spec().tools
    effects = {name: tool.effect for name, tool in tools.items()}
    assert effects["send_email"] == "at_most_once"
    assert effects["find_contact"] == effects["list_events"] == "pure"
    assert effects["add_event"] == effects["cancel_event"] == effects["set_stage"] == "idempotent"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "BOOKED: play=Hamlet, day=friday, seats=2",
            {"play": "hamlet", "day": "friday", "seats": "2"},
        ),
        (
            "Thanks!\nBOOKED: play=The Seagull , seats=2.\nBye",
            {"play": "the seagull", "seats": "2"},
        ),
        ("BOOKED: play=a\nBOOKED: play=b", {"play": "b"}),
        ("play=Hamlet", {}),
        ("BOOKED:", {}),
        ("", {}),
    ],
)
def test_a_booking_is_read(text: str, expected: dict[str, str]) -> None:
    assert booking(text) == expected
