"""One reward function applied to one rollout: whatever goes wrong becomes words that name it.

Used wherever rewards run: in a verifier's process, in the child of an isolated reward, and in the
tool worker that owns a session. What is judged travels as `PackedRollout`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, SupportsFloat

import msgspec

from broker import codec
from broker.errors import BrokerError, JournalUnavailable
from broker.messages import Failure, Packed, Status, Usage
from workers.limited import Overdue, described, last_lines, within
from workers.owner import Nondeterministic, Replaced
from workers.spec import (
    EnvironmentSpec,
    Item,
    JudgeVerdict,
    RewardSpec,
    Rollout,
    VerifierContext,
)

_ROW: Final = msgspec.json.Decoder(dict[str, Any])
#: What is not a verifier's fault.
OURS = (Replaced, Nondeterministic, BrokerError, JournalUnavailable)


class BadReward(Exception):
    """A reward function returned something that is no reward."""


class PackedRollout(Packed, frozen=True, kw_only=True):
    """A finished rollout as it travels to where a reward function runs."""

    rollout_id: str
    row: bytes
    """The dataset's line."""
    prompt: bytes
    """Packed list of items; `output` likewise."""
    output: bytes
    status: Status
    error: Failure | None = None
    state: bytes = b""
    steps: int = 0
    usage: Usage = Usage()


class Scored(Packed, frozen=True, kw_only=True):
    """What one reward function came to: a value or a failure."""

    value: float | None = None
    """Unweighted."""
    error: Failure | None = None
    overdue: bool = False
    """It did not end in time."""
    lost: bool = False
    """Its coroutine still runs, though nobody waits for it."""


def unpack_rollout(packed: PackedRollout, spec: EnvironmentSpec, session: Any = None) -> Rollout:
    """What reward functions see. Raises ValueError where its state is of another type by now."""
    prompt, output = codec.unpack(packed.prompt), codec.unpack(packed.output)
    return rollout_with(prompt, output, packed, spec, session)


def rollout_with(
    prompt: Sequence[Item],
    output: Sequence[Item],
    packed: PackedRollout,
    spec: EnvironmentSpec,
    session: Any = None,
) -> Rollout:
    """The same with these items in the place of the packed ones."""
    stateful = spec.state is not None and bool(packed.state)
    row: Mapping[str, Any] = _ROW.decode(packed.row)
    return Rollout(
        rollout_id=packed.rollout_id,
        task=row,
        prompt=prompt,
        output=output,
        status=packed.status,
        error=packed.error,
        state=spec.state.unpack(packed.state) if spec.state and stateful else None,
        session=session,
        steps=packed.steps,
        usage=packed.usage,
    )


class NoJudge:
    """For rewards that get no `ctx` (checked when their environment is loaded)."""

    async def judge(
        self, prompt: str | Sequence[Item], *, model: str | None = None, **options: Any
    ) -> str:
        raise RuntimeError("a reward that takes no ctx can't ask a judge")

    async def verdict(
        self,
        template: str,
        fields: Mapping[str, object],
        *,
        criteria: Mapping[str, str],
        **options: Any,
    ) -> JudgeVerdict:
        raise RuntimeError("a reward that takes no ctx can't ask a judge")


async def evaluate(
    spec: EnvironmentSpec,
    reward: RewardSpec,
    rollout: Rollout,
    ctx: VerifierContext,
    timeout_s: float,
) -> Scored:
    """Run one reward function. Raises only what is not a verifier's fault."""
    timeout_s = min(timeout_s, reward.timeout_s)
    try:
        value = await within(timeout_s, reward.run(rollout, ctx))
        return Scored(value=_checked(value, spec.reward_range))
    except Overdue as e:
        message = f"no reward within {timeout_s:g} s"
        failure = reward_failure(reward.name, message)
        return Scored(error=failure, overdue=True, lost=not e.ended)
    except BadReward as e:
        return Scored(error=reward_failure(reward.name, str(e)))
    except Exception as e:  # the border to user code
        cause = cause_of(e)
        if isinstance(cause, OURS):
            raise cause from e
        where = last_lines(cause).encode(errors="replace").decode()
        return Scored(error=reward_failure(reward.name, described(cause)[:4096], where))


def reward_failure(name: str, message: str, where: str = "") -> Failure:
    """A verifier's failure that names the reward."""
    return Failure(kind="verifier", message=f"reward {name!r}: {message}", where=where[-4096:])


def _checked(value: object, allowed: tuple[float, float]) -> float:
    # numpy's and decimal's numbers are welcome; a protocol is slow to ask for
    if type(value) is not float and not isinstance(value, SupportsFloat):
        raise BadReward(f"returned {type(value).__name__} {str(value)[:80]!r}, not a number")
    try:
        value = float(value)
    except (TypeError, ValueError, OverflowError) as e:
        raise BadReward(f"returned a {type(value).__name__} that is no one number: {e}") from e
    if not math.isfinite(value):
        raise BadReward(f"returned {value}")
    low, high = allowed
    if not low <= value <= high:
        raise BadReward(
            f"returned {value:g}, outside of the environment's reward_range {low:g}..{high:g}"
        )
    return value


def cause_of(error: BaseException) -> BaseException:
    """Of an exception group, what decides: what is not the verifier's fault, else the first."""
    leaves = list(_leaves(error))
    return next((leaf for leaf in leaves if isinstance(leaf, OURS)), leaves[0])


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error
