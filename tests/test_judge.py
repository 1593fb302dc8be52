"""Judges: prompts, structured verdicts, votes, retries; and a crash between two votes."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any, cast

import pytest

from broker.messages import Limits, ModelCall, Result
from tests.support.rig import Rig, trajectory_of
from workers.owner import Replaced
from workers.rewards import cause_of
from workers.spec import (
    Combine,
    EnvironmentSpec,
    Item,
    RewardSpec,
    Rollout,
    VerifierContext,
    Vote,
    message_text,
)
from workers.verifier.judge import JudgeFailed
from workers.verifier.scoring import score
from workers.verifier.verdicts import Malformed, combined, fill, question, read_vote

CRITERIA = {"true": "it is true", "kind": "it is kind"}


def answered(true: float = 10, kind: float = 10) -> str:
    return json.dumps({"reason": "so", "scores": {"true": true, "kind": kind}})


def judged_by(
    template: str = "{answer}", /, *, weights: Mapping[str, float] | None = None, **options: Any
) -> EnvironmentSpec:
    """An environment with one reward per criterion of one verdict."""

    def reward(name: str) -> Any:
        async def run(rollout: Rollout, ctx: VerifierContext) -> float:
            fields = {"answer": rollout.answer}
            verdict = await ctx.verdict(template, fields, criteria=CRITERIA, **options)
            return verdict.criteria[name]

        return run

    rewards = [RewardSpec(n, w, reward(n)) for n, w in (weights or {"true": 1.0}).items()]
    return EnvironmentSpec("test", rewards=rewards, judge_model="m")


class Judge:
    """A model that plays "fine" as the policy, and answers as the judge by path."""

    def __init__(self, answers: Mapping[str, str] | None = None) -> None:
        self.answers = dict(answers or {})
        self.asked: dict[str, list[Item]] = {}
        self.hold: dict[str, asyncio.Event] = {}
        self.arrived = asyncio.Condition()

    async def __call__(self, items: list[Item], call: ModelCall) -> str:
        if not call.path.startswith("verify."):
            return "fine {answer} {0} }{"
        self.asked[call.path] = items
        async with self.arrived:
            self.arrived.notify_all()
        if call.path in self.hold:
            await self.hold[call.path].wait()
        return self.answers.get(call.path, answered())

    async def seen(self, *paths: str) -> None:
        async with asyncio.timeout(10.0), self.arrived:
            await self.arrived.wait_for(lambda: self.asked.keys() >= set(paths))


async def verified(spec: EnvironmentSpec, judge: Judge) -> Result:
    async with Rig(spec, judge) as rig, rig.agent(), rig.verifier():
        await rig.submit(0)
        [result] = await rig.wait(1)
        return result


def test_a_template_takes_whatever_its_fields_hold() -> None:
    hostile = "{answer} {0.__class__} }{ {{x}} \\1 %s"
    text = fill('Judge {answer} of {n}: {{}} {"a": 1}', {"answer": hostile, "n": [1, "é"]})
    assert text == "Judge " + hostile + ' of [1, "é"]: {} {"a": 1}'


@pytest.mark.parametrize(
    ("template", "fields"),
    [("{answer} {task}", {"answer": "a"}), ("none", {"answer": "a"}), ("{answr}", {"answer": "a"})],
)
def test_a_field_that_is_missing_or_unused_is_named(
    template: str, fields: dict[str, object]
) -> None:
    with pytest.raises(ValueError, match=r"answ|task"):
        fill(template, fields)


def test_the_question_says_how_to_answer() -> None:
    text = question("Is {answer} right?", {"answer": "4"}, CRITERIA)
    assert text.startswith("Is 4 right?")
    assert "- kind: it is kind" in text
    assert '{"reason": "<one sentence>", "scores": {"true": <0-10>, "kind": <0-10>}}' in text


@pytest.mark.parametrize(
    "text",
    [
        answered(5, 10),
        f"Let me see {{x}}.\n```json\n{answered(5, 10)}\n```\nThat is all.",
        f"First I thought {answered(1, 1)}, but now: {answered(5, 10)}",
        '{"scores": {"kind": 10.0, "true": 5}, "reason": {"nested": true}, "more": 1}',
    ],
)
def test_a_verdict_is_found_in_what_judges_write(text: str) -> None:
    assert read_vote(text, CRITERIA).criteria == {"true": 0.5, "kind": 1.0}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "10/10",
        "{",
        "{" * 5000,
        "[" * 5000,
        '{"score": 10}',
        '{"scores": 10}',
        '{"scores": {"true": 5}}',
        '{"scores": {"true": 5, "kind": 5, "extra": 5}}',
        '{"scores": {"true": "5", "kind": 5}}',
        '{"scores": {"true": true, "kind": 5}}',
        '{"scores": {"true": null, "kind": 5}}',
        '{"scores": {"true": NaN, "kind": 5}}',
        '{"scores": {"true": Infinity, "kind": 5}}',
        '{"scores": {"true": 11, "kind": 5}}',
        '{"scores": {"true": -1, "kind": 5}}',
        '{"scores": {"true": 5, "kind": 5}',
    ],
)
def test_what_is_not_quite_a_verdict_is_malformed(text: str) -> None:
    with pytest.raises(Malformed):
        read_vote(text, CRITERIA)


@pytest.mark.parametrize(
    ("how", "votes", "expected"),
    [
        ("mean", [0.0, 0.5, 1.0], 0.5),
        ("median", [0.1, 0.2, 1.0], 0.2),
        ("majority", [0.9, 0.2, 0.9], 0.9),
        ("majority", [0.9, 0.2], 0.2),
        ("median", [0.3], 0.3),
    ],
)
def test_votes_are_combined(how: Combine, votes: list[float], expected: float) -> None:
    verdict = combined([Vote({"true": vote}) for vote in votes], how)
    assert verdict.criteria == {"true": expected}
    assert verdict.score == expected
    assert len(verdict.votes) == len(votes)


async def test_votes_are_asked_for_at_once_and_their_order_does_not_matter() -> None:
    judge = Judge({"verify.0": answered(0), "verify.1": answered(5), "verify.2": answered(6)})
    judge.hold = {f"verify.{n}": asyncio.Event() for n in range(3)}
    spec = judged_by(votes=3, combine="median")
    async with Rig(spec, judge) as rig, rig.agent(), rig.verifier():
        await rig.submit(0)
        await judge.seen("verify.0", "verify.1", "verify.2")
        for n in (2, 0, 1):
            judge.hold[f"verify.{n}"].set()
        [result] = await rig.wait(1)
    assert result.verdict.reward == 0.5
    assert len(result.verdict.calls) == 3


async def test_the_policys_braces_reach_the_judge_as_they_are() -> None:
    judge = Judge()
    await verified(judged_by("What of {answer}?"), judge)
    assert message_text(judge.asked["verify.0"][0]).startswith("What of fine {answer} {0} }{?")


async def test_components_of_one_verdict_cost_one() -> None:
    judge = Judge({"verify.0": answered(10, 5)})
    result = await verified(judged_by(weights={"true": 0.6, "kind": 0.4}), judge)
    assert result.verdict.reward == pytest.approx(0.8)
    assert dict(result.verdict.components) == pytest.approx({"true": 0.6, "kind": 0.2})
    assert set(judge.asked) == {"verify.0"}


async def test_a_malformed_vote_is_asked_for_again_at_a_path_of_its_own() -> None:
    judge = Judge({"verify.1": "ten of ten"})
    result = await verified(judged_by(votes=2, retries=1), judge)
    assert result.verdict.reward == 1.0
    assert set(judge.asked) == {"verify.0", "verify.1", "verify.3"}
    retry = judge.asked["verify.3"]
    assert [item["role"] for item in retry] == ["user", "assistant", "user"]


async def test_a_judge_without_a_usable_verdict_fails_the_verification_not_the_policy() -> None:
    judge = Judge({f"verify.{n}": "I like it" for n in (1, 3, 5)})
    result = await verified(judged_by(votes=2, retries=2), judge)
    assert result.verdict.reward is None
    assert result.verdict.error is not None
    assert result.verdict.error.kind == "verifier"
    assert "no usable verdict in 3 tries" in result.verdict.error.message
    assert set(judge.asked) == {"verify.0", "verify.1", "verify.3", "verify.5"}
    assert len(result.verdict.calls) == 4, "every call that was paid for is recorded"


async def test_after_a_crash_between_votes_no_finished_judge_call_is_repeated() -> None:
    judge = Judge({"verify.0": answered(2), "verify.1": "what?", "verify.4": answered(4)})
    judge.hold = {"verify.2": asyncio.Event()}
    spec = judged_by(votes=3)
    async with Rig(spec, judge) as rig, rig.agent():
        async with rig.verifier():
            await rig.submit(0)
            await judge.seen("verify.0", "verify.1", "verify.2", "verify.4")
        judge.hold["verify.2"].set()
        async with rig.verifier():
            [result] = await rig.wait(1)
        assert {path: n for path, n in rig.calls.items() if "verify" in path and n > 1} == {}
    assert result.verdict.reward == pytest.approx((0.2 + 0.4 + 1.0) / 3)


async def test_an_error_of_ours_in_a_reward_s_task_group_is_not_the_verifiers_failure() -> None:
    async def torn(rollout: Rollout, ctx: VerifierContext) -> float:
        raise ExceptionGroup("two", [ValueError("x"), ExceptionGroup("one", [Replaced("r")])])

    spec = EnvironmentSpec("test", rewards=[RewardSpec("torn", 1.0, torn)])
    nobody = cast(Any, None)
    with pytest.raises(Replaced):
        await score(spec, nobody, nobody, 1.0)


async def test_an_error_of_the_authors_in_a_task_group_is_named() -> None:
    async def torn(rollout: Rollout, ctx: VerifierContext) -> float:
        raise ExceptionGroup("one", [JudgeFailed("the judge sleeps")])

    spec = EnvironmentSpec("test", rewards=[RewardSpec("torn", 1.0, torn)])
    nobody = cast(Any, None)
    verdict = await score(spec, nobody, nobody, 1.0)
    assert verdict.error is not None
    assert "the judge sleeps" in verdict.error.message


def test_the_cause_of_a_single_error_is_itself() -> None:
    error = ValueError("x")
    assert cause_of(error) is error


@pytest.mark.parametrize("options", [{"votes": 0}, {"retries": -1}])
async def test_impossible_numbers_of_votes_are_the_authors_mistake(options: dict[str, Any]) -> None:
    result = await verified(judged_by(**options), Judge())
    assert result.verdict.error is not None
    assert "votes=" in result.verdict.error.message


async def test_without_a_judge_model_the_failure_says_so() -> None:
    async def run(rollout: Rollout, ctx: VerifierContext) -> float:
        return float(await ctx.judge("How good?"))

    spec = EnvironmentSpec("test", rewards=[RewardSpec("r", 1.0, run)])
    result = await verified(spec, Judge())
    assert result.verdict.error is not None
    assert "names no judge_model" in result.verdict.error.message


async def test_a_judge_that_nobody_serves_fails_the_verification_at_the_calls_deadline() -> None:
    spec = judged_by(model="gone", retries=0)
    async with Rig(spec, Judge()) as rig, rig.agent(), rig.verifier():
        await rig.submit(0, limits=Limits(call_timeout_s=0.3))
        [result] = await rig.wait(1)
    assert result.verdict.error is not None
    assert "no answer from judge model 'gone' within 0.3 s" in result.verdict.error.message


async def test_a_model_that_an_agent_names_and_nobody_serves_fails_that_rollout_alone() -> None:
    async def agent(ctx: Any, task: Any) -> None:
        if task.row["index"] == 0:
            await ctx.model([{"role": "user", "content": "hello"}], model="gone")
        await ctx.model()

    spec = EnvironmentSpec("test", agent=agent)
    async with Rig(spec, Judge()) as rig, rig.agent(), rig.verifier():
        await rig.submit(0, 1, limits=Limits(call_timeout_s=0.3))
        results = {result.task_index: trajectory_of(result) for result in await rig.wait(2)}
    assert results[1].status == "completed"
    assert results[0].status == "failed"
    assert results[0].error is not None
    assert "gone" in results[0].error.message
