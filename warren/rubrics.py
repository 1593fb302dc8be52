"""The four usual rubrics, as functions that make reward functions.

    correctness(check)      1 or 0 by a check of your own
    quality(template, ...)  a judge model's scores for named criteria
    efficiency(...)         how much of a budget of steps or tokens was left
    hybrid({...})           weighted components of these, in one go

Each gives what `@env.reward` takes, so they stand beside hand-written rewards:

    env.reward(weight=0.7, name="correct")(correctness(lambda r: "42" in r.answer))
    env.reward(weight=0.3, name="kind")(quality(TEMPLATE, {"kind": "it is friendly"}))

or, with components that count only where the answer is right:

    for part in hybrid({
        "correct": (0.8, correctness(check)),
        "brief": (0.2, efficiency(steps=6)),
    }, gate="correct"):
        env.reward(weight=part.weight, name=part.name)(part.run)
"""

import inspect
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from warren.calling import caller
from warren.checks import where
from workers.spec import Combine, Rollout, VerifierContext, message_text
from workers.threads import Threads

Plain = Callable[[Rollout], Awaitable[float]]
Reward = Callable[[Rollout, VerifierContext], Awaitable[float]]
"""What the functions here make: who does not ask for `ctx` costs a verifier less."""

AnyReward = Callable[..., Any]
"""A reward function as authors write it: of `rollout`, or `async` of `rollout` and `ctx`."""


def correctness(check: Callable[[Rollout], bool | float]) -> Plain:
    """1 where `check` says True, 0 where it says False; a share between them as it is.

    `check` runs in a thread, like every reward that is not `async`. What it raises is a failed
    verification, not a 0.
    """
    names = list(inspect.signature(check).parameters)
    if len(names) != 1:
        raise ValueError(f"{where(check)}: a check takes the rollout, and nothing else")
    call = caller(check, Threads())

    async def correct(rollout: Rollout) -> float:
        return float(await call(**{names[0]: rollout}))

    return correct


def quality(
    template: str,
    criteria: Mapping[str, str],
    *,
    of: str | None = None,
    votes: int = 1,
    combine: Combine = "mean",
    **options: Any,
) -> Reward:
    """A judge's score, from 0 to 1: the mean of all criteria, or `of` one of them.

    The template may have the fields `{task}` (what the user asked), `{answer}` (the last
    message) and `{transcript}` (all that followed the prompt, as JSON). Several components with
    the same template and criteria share one verdict, and so cost one. `options` are those of
    `ctx.verdict`: `model`, `retries`, and fields of the request.
    """
    if of is not None and of not in criteria:
        raise ValueError(f"of={of!r} is none of the criteria {', '.join(criteria)}")

    async def judged(rollout: Rollout, ctx: VerifierContext) -> float:
        verdict = await ctx.verdict(
            template,
            _fields(template, rollout),
            criteria=criteria,
            votes=votes,
            combine=combine,
            **options,
        )
        return verdict.score if of is None else verdict.criteria[of]

    return judged


def efficiency(*, steps: int | None = None, tokens: int | None = None) -> Plain:
    """1 for the least that is possible, falling to 0 where the whole budget is used.

    Args:
        steps: model calls; one call is the least.
        tokens: generated tokens; none is the least. Given both, the worse of the two counts.
    """
    if steps is None and tokens is None:
        raise ValueError("efficiency needs a budget: steps=..., tokens=..., or both")
    if (steps is not None and steps < 2) or (tokens is not None and tokens < 1):
        raise ValueError(f"steps={steps} must be 2 or more, tokens={tokens} 1 or more")

    async def efficient(rollout: Rollout) -> float:
        used = [0.0]
        if steps is not None:
            used.append((rollout.steps - 1) / (steps - 1))
        if tokens is not None:
            used.append(rollout.usage.generated_tokens / tokens)
        return 1.0 - min(max(used), 1.0)

    return efficient


@dataclass(frozen=True, slots=True)
class Component:
    """One named, weighted part of a rubric."""

    name: str
    weight: float
    run: Reward


def hybrid(
    components: Mapping[str, tuple[float, AnyReward]], *, gate: str | None = None
) -> Sequence[Component]:
    """Named components whose weights sum to 1, so that the reward stays between 0 and 1.

    With a `gate`, every other component is multiplied by that one: being brief or polite pays
    nothing where the answer is wrong. The gate is worked out again for each of them, so let it be
    cheap, or a judge, which isn't asked twice.
    """
    total = math.fsum(weight for weight, _ in components.values())
    if not math.isclose(total, 1.0):
        raise ValueError(f"the weights sum to {total:g}, not to 1")
    if gate is not None and gate not in components:
        raise ValueError(f"gate={gate!r} is none of the components {', '.join(components)}")
    rewards = {name: _reward(function) for name, (_, function) in components.items()}
    door = None if gate is None else rewards[gate]
    return [
        Component(
            name=name,
            weight=weight,
            run=rewards[name] if door is None or name == gate else _gated(door, rewards[name]),
        )
        for name, (weight, _) in components.items()
    ]


def _gated(gate: Reward, reward: Reward) -> Reward:
    async def gated(rollout: Rollout, ctx: VerifierContext) -> float:
        opened = await gate(rollout, ctx)
        return opened * await reward(rollout, ctx) if opened else 0.0

    return gated


def _reward(function: AnyReward) -> Reward:
    """A reward of one or two parameters, sync or async, as one of two."""
    names = list(inspect.signature(function).parameters)
    if len(names) not in {1, 2}:
        raise ValueError(f"{where(function)}: a reward takes `rollout`, or `rollout` and `ctx`")
    call = caller(function, Threads())

    async def reward(rollout: Rollout, ctx: VerifierContext) -> float:
        given = dict(zip(names, (rollout, ctx), strict=False))
        return float(await call(**given))

    return reward


def _fields(template: str, rollout: Rollout) -> dict[str, object]:
    """Those of the three fields that the template has."""
    asked = [message_text(item) for item in rollout.prompt if item.get("role") == "user"]
    fields: dict[str, object] = {
        "task": "\n".join(asked),
        "answer": rollout.answer,
        "transcript": list(rollout.output),
    }
    return {name: value for name, value in fields.items() if f"{{{name}}}" in template}
