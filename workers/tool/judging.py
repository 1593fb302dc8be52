"""A reward that needs the rollout's session is run here, where the session lives."""

import json
from typing import Any

from broker import codec
from broker.messages import Failure, ToolCall, ToolResult
from workers.rewards import NoJudge, PackedRollout, evaluate, reward_failure, unpack_rollout
from workers.spec import EnvironmentSpec
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
    scored = await evaluate(spec, reward, rollout, NoJudge(), timeout_s)
    result = ToolResult(output=json.dumps(scored.value), error=scored.error)
    return Performed(result=result, overdue=scored.overdue, lost=scored.lost)
