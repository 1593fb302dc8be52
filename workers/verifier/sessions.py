"""What a verifier asks of the tool worker that keeps the rollout's session: a reward, the end."""

import functools
import json

from broker import codec
from broker.base import Broker, Outgoing
from broker.errors import TooLarge, Unroutable
from broker.messages import Failure, Task, ToolCall, ToolResult
from broker.serve import publish_patiently
from broker.topology import TOOL
from workers.owner import Owner
from workers.rewards import PackedRollout, Scored, reward_failure
from workers.sessions import Address, SessionGone, session_key, while_alive
from workers.spec import RewardSpec
from workers.waiting import Ask


async def evaluate_at_owner(
    broker: Broker,
    owner: Owner,
    task: Task,
    reward: RewardSpec,
    rollout: PackedRollout,
    session: bytes,
) -> Scored:
    """Evaluate a reward beside the live session, as a journaled call. Raises SessionGone."""
    if not session:
        return Scored(error=reward_failure(reward.name, "the rollout has no session"))
    address = codec.read(Address, session)
    judged = codec.pack(rollout)
    ask = Ask(
        path=f"session.{reward.name}",
        request_hash=codec.digest(reward.name.encode(), session, judged),
        exchange=TOOL.name,
        key=session_key(address),
        message=functools.partial(
            ToolCall,
            run=task.run,
            environment=task.environment,
            lane="resume",
            name=reward.name,
            call_id="",
            arguments="",
            session=session,
            action="reward",
            judged=judged,
        ),
        timeout_s=reward.timeout_s + 5.0,
        on_timeout=functools.partial(_no_answer, reward),
    )
    try:
        result = codec.read(ToolResult, await while_alive(broker, address, owner.call(ask)))
    except TooLarge as e:
        return Scored(error=Failure(kind="infra", message=f"rollout too large to be sent: {e}"))
    if result.session_gone:
        raise SessionGone(result.error.message if result.error else "the session has gone")
    if result.error is not None:
        return Scored(error=result.error)
    return Scored(value=json.loads(result.output))


async def close_session(broker: Broker, task: Task, rollout: str, session: bytes) -> None:
    """Ask its worker to close the session; one that has gone needs no closing."""
    call = ToolCall(
        rollout=rollout,
        epoch="",
        path="close",
        carrier="",
        request_hash=b"",
        held=0,
        reply_to="",
        deadline=0.0,
        run=task.run,
        environment=task.environment,
        name="",
        call_id="",
        arguments="",
        session=session,
        action="close",
    )
    key = session_key(codec.read(Address, session))
    try:
        await publish_patiently(
            broker, Outgoing(TOOL.name, key, codec.encode(call), codec.kind_of(ToolCall))
        )
    except Unroutable:
        return


def _no_answer(reward: RewardSpec) -> bytes:
    failure = reward_failure(reward.name, f"no reward within {reward.timeout_s:g} s")
    return codec.pack(ToolResult(error=failure))
