"""Rewards in processes of their own; the judge stays here and is asked over the line.

So a reward that kills or blocks its process costs nobody else anything, and its judge calls are
journaled at the same paths as if it had run in the worker.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from broker import codec
from broker.messages import Failure, Packed
from workers.isolation import CannotIsolate, ChildDied, Isolation
from workers.isolation_server import Ask, Handler
from workers.rewards import PackedRollout, Scored, evaluate, reward_failure, unpack_rollout
from workers.spec import EnvironmentSpec, Item, JudgeVerdict, RewardSpec, VerifierContext, Vote
from workers.verifier.judge import JudgeFailed

#: The kind of job, as the child knows it.
KIND = "reward"


class _Job(Packed, frozen=True, kw_only=True):
    reward: str
    rollout: PackedRollout
    timeout_s: float


class _Asked(Packed, frozen=True, kw_only=True):
    """A call of the judge."""

    method: str
    arguments: bytes
    """Packed list of positional arguments and mapping of the others."""


class _Answered(Packed, frozen=True, kw_only=True):
    """What the judge said, or the error that it raised."""

    value: bytes = b""
    error: str = ""


async def evaluate_isolated(
    isolation: Isolation,
    reward: RewardSpec,
    rollout: PackedRollout,
    ctx: VerifierContext,
    timeout_s: float,
) -> Scored:
    """As `evaluate`, in a process that is killed when its time is over."""
    timeout_s = min(timeout_s, reward.timeout_s)
    job = _Job(reward=reward.name, rollout=rollout, timeout_s=timeout_s)
    try:
        answer = await isolation.run(KIND, codec.pack(job), timeout_s, _judging(ctx))
    except CannotIsolate as e:
        message = f"cannot isolate reward {reward.name!r}: {e}"
        return Scored(error=Failure(kind="infra", message=message))
    except TimeoutError:
        # a child whose loop is free says so itself
        message = f"no reward within {timeout_s:g} s: it blocked its process"
        return Scored(error=reward_failure(reward.name, message))
    except ChildDied as e:
        return Scored(error=reward_failure(reward.name, str(e)))
    return msgspec.structs.replace(codec.read(Scored, answer), overdue=False, lost=False)


def _judging(ctx: VerifierContext) -> Ask:
    """The worker's side of what the child asks its judge."""

    async def answer(body: bytes) -> bytes:
        asked = codec.read(_Asked, body)
        words, named = codec.unpack(asked.arguments)
        try:
            if asked.method == "judge":
                value: Any = await ctx.judge(*words, **named)
            else:
                value = dataclasses.asdict(await ctx.verdict(*words, **named))
        except (ValueError, TypeError) as e:
            return codec.pack(_Answered(error=f"{type(e).__name__}: {e}"))
        except JudgeFailed as e:
            return codec.pack(_Answered(error=str(e)))
        return codec.pack(_Answered(value=codec.pack(value)))

    return answer


class _AskingContext:
    """What a reward gets as `ctx` in the child."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    async def judge(
        self, prompt: str | Sequence[Item], *, model: str | None = None, **options: Any
    ) -> str:
        """See VerifierContext."""
        return str(await self._call("judge", prompt, model=model, **options))

    async def verdict(
        self,
        template: str,
        fields: Mapping[str, object],
        *,
        criteria: Mapping[str, str],
        **options: Any,
    ) -> JudgeVerdict:
        """See VerifierContext."""
        said = await self._call("verdict", template, fields, criteria=criteria, **options)
        return JudgeVerdict(said["criteria"], [Vote(**vote) for vote in said["votes"]])

    async def _call(self, method: str, *words: object, **named: object) -> Any:
        asked = _Asked(method=method, arguments=codec.pack([words, named]))
        answered = codec.read(_Answered, await self._ask(codec.pack(asked)))
        if answered.error:
            raise JudgeFailed(answered.error)
        return codec.unpack(answered.value)


def handler(spec: EnvironmentSpec) -> Handler:
    """The child's side."""
    rewards = {reward.name: reward for reward in spec.rewards}

    async def handle(body: bytes, ask: Ask) -> bytes:
        job = codec.read(_Job, body)
        rollout = unpack_rollout(job.rollout, spec)
        ctx = _AskingContext(ask)
        scored = await evaluate(spec, rewards[job.reward], rollout, ctx, job.timeout_s)
        return codec.pack(scored)

    return handle
