"""The built-in environments: rewards agree with the answers' ground truth, and all of them run."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from broker.messages import Usage
from environments.dialogue import booking
from environments.math import final_answer
from environments.search import DOCUMENTS, read, search
from environments.workplace import Email, Office, office, send_email, set_stage
from warren import Item, MathEquality, Rollout, VerifierContext, load_environment

NAMES = ("math", "search", "instructions", "workplace", "dialogue", "open_ended")
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


@pytest.fixture(scope="module")
def mathematics() -> Any:
    equality = MathEquality()
    yield equality
    equality.close()


@pytest.mark.parametrize(
    ("said", "expected", "equal"),
    [
        ("0.5", r"\frac{1}{2}", True),
        (r"\frac{2}{4}", r"\frac{1}{2}", True),
        (r"\dfrac12", "1/2", True),
        ("½", "0.5", True),
        ("1¾", r"\frac{7}{4}", True),
        ("0.333333", "1/3", True),
        ("0.33", "1/3", False),
        ("1,000", "1000", True),
        ("1{,}000", "1000", True),
        ("12.0", "12", True),
        ("$12$", "12", True),
        ("12.", "12", True),
        ("－３", "-3", True),
        ("\u22123", "-3", True),
        ("3", "-3", False),
        ("50\\%", "0.5", True),
        ("35", r"35 \text{ cm}^2", True),
        ("35 cm^2", r"35 \text{ cm}^2", True),
        ("35 cm²", r"35 \text{ cm}^2", True),
        ("35 m^2", r"35 \text{ cm}^2", False),
        ("35 cm", r"35 \text{ cm}^2", False),
        ("5 hours", "5 h", True),
        ("5 minutes", "5 h", False),
        (r"90^\circ", "90", True),
        (r"\$15", "15", True),
        (r"\sqrt{8}", r"2\sqrt{2}", True),
        ("2√2", r"\sqrt{8}", True),
        (r"\sqrt{5}/5", r"\frac{1}{\sqrt{5}}", True),
        ("(x+1)^2", "x^2+2x+1", True),
        ("x²+2x+1", "(x+1)^2", True),
        ("x^2+2", "x^2+1", False),
        ("2^{10}", "1024", True),
        ("x = 5", "5", True),
        ("y=3", "x=3", False),
        ("{3, 1, 2}", r"\{1, 2, 3\}", True),
        ("2, 3", r"\{3, 2\}", True),
        ("2", r"\{3, 2\}", False),
        ("(2, 1)", "(1, 2)", False),
        ("(-3,3)", "(-3, 3)", True),
        ("[-3,3]", "(-3, 3)", False),
        ("41 or 42", "42", False),
        (r"1 \text{ or } 42", "42", False),
        (r"\frac{2}{4}", r"\frac12", True),
        (r"\frac{1}{-2}", "-0.5", True),
        ("1 1/2", "3/2", True),
        ("-1 1/2", "-1.5", True),
        (r"1\frac12", "1.5", True),
        ("50", r"50\%", True),
        (r"5\%", "0.5", False),
        ("3.14", r"\pi", False),
        (r"\frac{\pi}{2}", r"\pi/2", True),
        (r"2\pi", "6.28", False),
        ("10 m", "10 cm", False),
        ("1 km", "1000 m", False),
        ("5 dollars", "5", True),
        ("5 cents", "5 dollars", False),
        ("30 degrees", r"30^\circ", True),
        ("x=1, x=2", "1,2", True),
        (r"1 \text{ and } 2", r"\{1,2\}", True),
        (r"\{1,2,3,4\}", r"\{1,2,3\}", False),
        (r"(-\infty,3)\cup(5,\infty)", r"(5,\infty)\cup(-\infty,3)", True),
        ("x<3", r"(-\infty,3)", True),
        (r"0 \le x \le 1", "[0,1]", True),
        ("x > 3", r"x \geq 3", False),
        (r"\begin{pmatrix}\frac12\\2\end{pmatrix}", r"\begin{bmatrix}0.5\\2\end{bmatrix}", True),
        (
            r"\begin{pmatrix}1&2\\3&4\end{pmatrix}",
            r"\begin{pmatrix}1&3\\2&4\end{pmatrix}",
            False,
        ),
        ("1 000 000", "1000000", True),
        (r"1\,000", "1000", True),
        ("1.000", "1000", False),
        ("12,34", "1234", False),
        ("1e3", "1000", True),
        ("1.5e-3", "0.0015", True),
        (r"1.5\times 10^{3}", "1500", True),
        ("1.5×10^3", "1500", True),
        (r"\sin^2 x+\cos^2 x", "1", True),
        (r"\log_2 8", "3", True),
        (r"\sqrt[3]{8}", "2", True),
        ("x(x+1)", "x^2+x+1", False),
        ("3-4i", "3+4i", False),
        ("5!", "120", True),
        (r"\binom{5}{2}", "10", True),
        (r"\text{(A)}", "A", True),
        ("(B)", "B", True),
        ("B", "A", False),
        (r"\text{Monday}", "Monday", True),
        (r"\text{east}", r"\text{west}", False),
        ("2 (or 3)", "2", False),
        ("not 2", "2", False),
        (r"\neq 2", "2", False),
        ("1 = 2", "2", False),
        ("2 = 1", "2", False),
        ("3/4 = 0.75", "0.75", True),
        ("2; 3", "2", False),
        ("2/3", "2", False),
        ("2x", "2", False),
        ("2.0001", "2", False),
        ("0.3333", "1/3", False),
        (r"\infty", r"-\infty", False),
        ("0", r"\emptyset", False),
        (r"\frac{0}{0}", "0", False),
        (r"\frac{1}{0}", "0", False),
        ("5", "", False),
        ("forty-two", "42", False),
        ("", "42", False),
        ("42" * 300, "42", False),
    ],
)
def test_mathematics_is_compared_as_mathematics(
    mathematics: MathEquality, said: str, expected: str, equal: bool
) -> None:
    assert mathematics.equal(said, expected) is equal


SEPARATORS = [
    *("or", "and", ",", ";", "|", "&", "/ ", "vs", "###", "\n"),
    *(r"\text{ or }", r"\text{ perhaps }", r"\\", r"\&", r"\mid", r"\vee", r"\lor", r"\cup"),
    *(r"\quad", r"\to", r"\Rightarrow", r"\star", r"\sim", r"\approx", "≈", r"\neq", "=", "<"),
]


@pytest.mark.parametrize("between", SEPARATORS)
def test_listing_several_candidates_never_pays(mathematics: MathEquality, between: str) -> None:
    for said in (f"2 {between} 7", rf"2 {between} 7\text{{.}}", f"5 {between} 2 {between} 7"):
        assert not mathematics.equal(said, "7"), said
        assert between in (r"\approx", "≈") or not mathematics.equal(said, "2"), said


@pytest.mark.parametrize(
    ("said", "expected", "equal"),
    [
        ("2 or 2", "2", True),
        ("3 or 2", r"\{2, 3\}", True),
        ("x=2 or x=3", "2, 3", True),
        (r"\approx 2", "2", True),
        (r"x \approx 2", "2", True),
        (r"\approx 3", "2", False),
        (r"\frac13 \approx 0.33", "1/3", True),
        ("1/3 ≈ 0.333", "1/3", True),
        ("1/3 ≈ 0.4", "1/3", False),
        (r"0.333 \approx \frac13", "1/3", False),
        ("2 ≈ 3", "2", False),
        ("2 ≈ 3", "3", False),
        (r"x = \sqrt{2} \approx 1.41", r"\sqrt 2", True),
        (r"42\text{ if }x>0, 7\text{ otherwise}", "42", False),
        (r"42\text{ or so }\sqrt{7}\text{.}", "42", False),
        (r"42\text{ }\text{km}", "42", True),
        (r"\therefore 42", "42", True),
        (r"\pi \vee 42", "42", False),
    ],
)
def test_a_set_is_a_set_and_a_rounding_a_rounding(
    mathematics: MathEquality, said: str, expected: str, equal: bool
) -> None:
    assert mathematics.equal(said, expected) is equal


@pytest.mark.parametrize(
    "hostile",
    [
        "9^{9^{9^{9}}}",
        "9**9**9**9",
        r"\sum_{n=1}^{10^9} n",
        r"\int_0^1 x^{x^{x}} dx",
        "100000!",
        "42=" * 100 + "42",
        "1e999999999",
        "10^{10^{10}}!",
        "((((((((x+1)^9)^9)^9)^9)^9)^9)^9)^9",
        "{" * 190 + "x" + "}" * 190,
        r"\frac{" * 60 + "1",
        r"\begin{matrix}" + "1&" * 100,
        "__import__('os').abort()",
        r"}\boxed{42",
        r"42}\boxed{7",
        r"\text{nan}",
        "9" * 399,
        "\0",
        "\ud800",
        "\\" * 100,
    ],
)
def test_hostile_answers_are_wrong_soon_and_harm_nobody(
    mathematics: MathEquality, hostile: str
) -> None:
    assert not mathematics.equal("warm", "up")
    began = time.process_time()
    assert not mathematics.equal(hostile, "42")
    assert time.process_time() - began < 1.0, "the work is done elsewhere, within limits"
    assert mathematics.equal("84/2", "42")


def test_a_killed_server_is_started_again(mathematics: MathEquality) -> None:
    assert mathematics.equal("0.25", "1/4")
    mathematics.close()
    assert mathematics.equal("0.25", "1/4")


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(RuntimeError, match=r"pip install 'warren\[math\]'"):
        MathEquality().equal("1/2", "0.5")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"So \boxed{5} apples. I hope this helps!", "5"),
        (r"\boxed{1}, no: \boxed{\frac{1}{\sqrt{2}}}", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed {7}", "7"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{3} and then it breaks off: \boxed{4", "3"),
        ("I think.\nThe answer is 42", "42"),
        ("**Answer: 42**", "42"),
        ("The answer is 41 or 42", "41 or 42"),
        ("42", "42"),
        ("", ""),
    ],
)
def test_the_final_answer_is_found(text: str, answer: str) -> None:
    assert final_answer(text) == answer


def test_unfinished_boxes_cost_no_time() -> None:
    began = time.process_time()
    assert final_answer("\\boxed{" * 20_000)
    assert time.process_time() - began < 0.2


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


@pytest.mark.parametrize("name", NAMES)
def test_it_is_one_readable_file_with_a_dozen_tasks(name: str) -> None:
    env = load_environment(name)
    source = Path(env.source).read_text(encoding="utf-8")
    assert len(source.splitlines()) < (180 if name == "workplace" else 115)
    assert "from warren." not in source
    assert env.tasks is not None
    lines = env.tasks.read_text("utf-8").splitlines()
    assert len(lines) >= 12
    assert all("responses_create_params" in json.loads(line) for line in lines)


def collect(name: str, output: Path) -> dict[str, Any]:
    tasks = load_environment(name).tasks
    command = [sys.executable, "-m", "warren", "collect", str(tasks), "--env", name]
    command += ["--model", "scripted", "-o", str(output), "--repeats", "3", "--json", "-q"]
    done = subprocess.run(
        command,
        cwd=output.parent,
        capture_output=True,
        text=True,
        timeout=100,
        env={k: v for k, v in os.environ.items() if not k.startswith("WARREN_")},
    )
    assert done.returncode == 0, done.stderr
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary


def scores(output: Path) -> dict[tuple[int, int], float]:
    rows = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
    return {(row["_ng_task_index"], row["_ng_rollout_index"]): row["reward"] for row in rows}


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_from_end_to_end_with_mixed_outcomes(name: str, tmp_path: Path) -> None:
    first = collect(name, tmp_path / "rows.jsonl")
    assert first["completed"] == first["rollouts"] == first["tasks"] * 3, first
    assert 0.0 < first["mean_reward"] < 1.0
    rows = scores(tmp_path / "rows.jsonl")
    groups = [{rows[task, repeat] for repeat in range(3)} for task in range(first["tasks"])]
    assert sum(len(group) > 1 for group in groups) >= len(groups) / 3, "repeats differ"
    written = (tmp_path / "rows.jsonl").read_bytes()
    again = collect(name, tmp_path / "rows.jsonl")
    assert again["rollouts"] == first["rollouts"]
    assert (tmp_path / "rows.jsonl").read_bytes() == written, "nothing was left to do"
    collect(name, tmp_path / "other.jsonl")
    assert scores(tmp_path / "other.jsonl") == rows, "outcomes depend on task and repeat alone"
