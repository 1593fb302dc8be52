"""Rubrics: correctness, quality, efficiency and hybrids of them, as weighted named components."""

import threading
from collections.abc import Mapping
from typing import Any, cast

import pytest

from broker.messages import Usage
from warren import (
    Environment,
    JudgeVerdict,
    Rollout,
    VerifierContext,
    Vote,
    correctness,
    efficiency,
    hybrid,
    quality,
)
from workers.verifier.scoring import score

NOBODY = cast(VerifierContext, None)


def rollout(answer: str = "4", *, steps: int = 1, tokens: int = 0) -> Rollout:
    return Rollout(
        rollout_id="r/0/0",
        task={"expected_answer": "4"},
        prompt=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}],
        output=[{"type": "message", "role": "assistant", "content": answer}],
        status="completed",
        error=None,
        state=None,
        session=None,
        steps=steps,
        usage=Usage(generated_tokens=tokens),
    )


class Judge:
    """Gives every criterion its score, and remembers what it was asked."""

    def __init__(self, **scores: float) -> None:
        self.scores = scores
        self.fields: list[Mapping[str, object]] = []
        self.options: list[dict[str, Any]] = []

    async def judge(self, prompt: object, **options: Any) -> str:
        return "fine"

    async def verdict(
        self, template: str, fields: Mapping[str, object], **options: Any
    ) -> JudgeVerdict:
        self.fields.append(fields)
        self.options.append(options)
        return JudgeVerdict(criteria=self.scores, votes=[Vote(self.scores)])


def right(rollout: Rollout) -> bool:
    return bool(rollout.answer == rollout.task["expected_answer"])


async def test_correctness_is_a_check_in_a_thread() -> None:
    seen: list[threading.Thread] = []

    def check(rollout: Rollout) -> bool:
        seen.append(threading.current_thread())
        return right(rollout)

    assert await correctness(check)(rollout("4")) == 1.0
    assert await correctness(check)(rollout("5")) == 0.0
    assert threading.main_thread() not in seen
    assert await correctness(lambda r: 0.25)(rollout()) == 0.25


async def test_quality_asks_a_judge_with_the_fields_that_the_template_has() -> None:
    judge = Judge(clear=0.5, kind=1.0)
    criteria = {"clear": "it is clear", "kind": "it is kind"}
    reward = quality("{task} -> {answer}", criteria, votes=3, combine="median", model="big")
    assert await reward(rollout("{4}"), judge) == 0.75
    assert judge.fields == [{"task": "2+2?", "answer": "{4}"}]
    assert judge.options == [
        {"criteria": criteria, "votes": 3, "combine": "median", "model": "big"},
    ]
    assert await quality("{transcript}", criteria, of="clear")(rollout(), judge) == 0.5
    assert "4" in str(judge.fields[-1]["transcript"])


@pytest.mark.parametrize(
    ("budget", "steps", "tokens", "expected"),
    [
        ({"steps": 5}, 1, 0, 1.0),
        ({"steps": 5}, 3, 0, 0.5),
        ({"steps": 5}, 5, 0, 0.0),
        ({"steps": 5}, 50, 0, 0.0),
        ({"steps": 5}, 0, 0, 1.0),
        ({"tokens": 100}, 9, 25, 0.75),
        ({"steps": 5, "tokens": 100}, 3, 75, 0.25),
    ],
)
async def test_efficiency_is_the_part_of_the_budget_that_is_left(
    budget: dict[str, int], steps: int, tokens: int, expected: float
) -> None:
    assert await efficiency(**budget)(rollout(steps=steps, tokens=tokens)) == expected


async def test_a_hybrid_is_named_components_of_an_environment() -> None:
    env = Environment("test")

    async def polite(rollout: Rollout, ctx: VerifierContext) -> float:
        return 1.0

    parts: dict[str, tuple[float, Any]] = {
        "correct": (0.5, right),
        "kind": (0.25, quality("{answer}", {"kind": "it is kind"})),
        "brief": (0.15, efficiency(steps=3)),
        "polite": (0.1, polite),
    }
    for part in hybrid(parts):
        env.reward(weight=part.weight, name=part.name)(part.run)
    verdict = await score(env.spec(), rollout("5", steps=2), Judge(kind=0.8), 5.0)
    assert dict(verdict.components) == pytest.approx(
        {"correct": 0.0, "kind": 0.2, "brief": 0.075, "polite": 0.1}
    )
    assert verdict.reward == pytest.approx(0.375)


async def test_behind_a_gate_nothing_pays_where_the_answer_is_wrong() -> None:
    judge = Judge(kind=1.0)
    parts: dict[str, tuple[float, Any]] = {
        "correct": (0.6, correctness(right)),
        "kind": (0.4, quality("{answer}", {"kind": "it is kind"})),
    }
    gated = {part.name: part.run for part in hybrid(parts, gate="correct")}
    assert await gated["kind"](rollout("5"), judge) == 0.0
    assert not judge.fields, "a judge costs money"
    assert await gated["kind"](rollout("4"), judge) == 1.0
    assert await gated["correct"](rollout("4"), judge) == 1.0


def test_mistakes_in_a_rubric_are_named() -> None:
    with pytest.raises(ValueError, match=r"sum to 0\.9"):
        hybrid({"a": (0.5, right), "b": (0.4, right)})
    with pytest.raises(ValueError, match="gate='c' is none of"):
        hybrid({"a": (1.0, right)}, gate="c")
    with pytest.raises(ValueError, match="a reward takes"):
        hybrid({"a": (1.0, lambda: 1.0)})
    with pytest.raises(ValueError, match="needs a budget"):
        efficiency()
    with pytest.raises(ValueError, match="steps=1"):
        efficiency(steps=1)
    with pytest.raises(ValueError, match="of='rude'"):
        quality("{answer}", {"kind": "it is kind"}, of="rude")
    with pytest.raises(ValueError, match="check takes"):
        correctness(lambda: True)  # type: ignore[arg-type, misc]
