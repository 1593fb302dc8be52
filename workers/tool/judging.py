"""A reward that needs the rollout's session is run here, where the session lives."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from broker import codec
from broker.messages import Failure, ToolCall, ToolResult
from workers.rewards import PackedRollout, evaluate, reward_failure, unpack_rollout
from workers.spec import EnvironmentSpec, Item, JudgeVerdict
from workers.tool.running import Performed


async def reward_result(
    spec: EnvironmentSpec, call: ToolCall, timeout_s: float, session: Any
) -> Performed:
    """Evaluate the reward that the call names; its value is the result's output, as JSON."""
    reward = next((each for each in spec.rewards if each.name == call.name), None)
    if reward is None:
        failure = reward_failure(call.name, "this tool worker's environment has no such reward")
        return Performed(result=ToolResult(error=failure))
    try:
        rollout = unpack_rollout(codec.read(PackedRollout, call.judged), spec, session)
    except ValueError as e:
        failure = Failure(kind="verifier", message=f"the final state can't be read: {e}")
        return Performed(result=ToolResult(error=failure))
    scored = await evaluate(spec, reward, rollout, _NoJudge(), timeout_s)
    result = ToolResult(output=json.dumps(scored.value), error=scored.error)
    return Performed(result=result, overdue=scored.overdue, lost=scored.lost)


class _NoJudge:
    """Rewards that take a session get no `ctx` (checked when the environment is loaded)."""

    async def judge(
        self, prompt: str | Sequence[Item], *, model: str | None = None, **options: Any
    ) -> str:
        raise RuntimeError("a reward with a session can't ask a judge")

    async def verdict(
        self,
        template: str,
        fields: Mapping[str, object],
        *,
        criteria: Mapping[str, str],
        **options: Any,
    ) -> JudgeVerdict:
        raise RuntimeError("a reward with a session can't ask a judge")
