"""`warren dlq`: looking changes nothing, dropping is for good, replay is a new attempt."""

import msgspec
import pytest

from broker import codec
from broker.base import Outgoing
from broker.errors import UsageError
from broker.memory import MemoryBroker
from broker.messages import ModelCall, Task
from broker.serve import QUEUE_HEADER, REASON_HEADER
from broker.topology import KEPT, kept_queue, task_queue
from tests.support.calls import model_call
from warren.dead_letters import letters, readable, replay

TASK = Task(
    run="r",
    generation="g",
    task_index=3,
    repeat=1,
    environment="env",
    model="m",
    row=b'{"prompt": "hi"}',
)


async def _keep(broker: MemoryBroker, kind: str, body: bytes) -> None:
    await broker.declare([kept_queue()])
    headers = {REASON_HEADER: "it was bad", QUEUE_HEADER: "warren.q.v1.task.normal.env"}
    await broker.publish(Outgoing(KEPT.name, "kept", body, kind, headers))


async def _ready(broker: MemoryBroker, queue: str) -> int:
    depth = await broker.depth(queue)
    return 0 if depth is None else depth.ready


async def test_looking_gives_everything_back() -> None:
    broker = MemoryBroker()
    await _keep(broker, codec.kind_of(Task), codec.encode(TASK))
    await _keep(broker, "junk", b"\xc1")
    for _ in range(3):
        async with letters(broker) as found:
            assert [letter.rollout for letter in found] == ["r/3/1", ""]
            assert {letter.reason for letter in found} == {"it was bad"}
            assert readable(found[0])["message"]["row"] == {"prompt": "hi"}
            assert readable(found[1])["message"] == {"bytes": 1, "begins": "c1"}
    assert await _ready(broker, kept_queue().name) == 2


async def test_an_id_stays_the_same_and_a_drop_is_for_good() -> None:
    broker = MemoryBroker()
    await _keep(broker, codec.kind_of(Task), codec.encode(TASK))
    async with letters(broker) as found:
        first = found[0].id
    async with letters(broker) as found:
        assert found[0].id == first
        found[0].delivery.ack()
    assert await _ready(broker, kept_queue().name) == 0


async def test_a_replay_is_a_new_attempt_and_takes_the_letter_away() -> None:
    broker = MemoryBroker()
    await _keep(broker, codec.kind_of(Task), codec.encode(TASK))
    async with letters(broker) as found:
        await replay(broker, found[0])
    assert await _ready(broker, kept_queue().name) == 0
    assert await _ready(broker, task_queue("normal", "env").name) == 1


async def test_what_holds_no_task_is_not_replayed_and_says_why() -> None:
    broker = MemoryBroker()
    await _keep(broker, codec.kind_of(ModelCall), codec.encode(model_call()))
    async with letters(broker) as found:
        with pytest.raises(UsageError, match="holds no task"):
            await replay(broker, found[0])
    assert await _ready(broker, kept_queue().name) == 1


async def test_a_collectors_rollout_is_sent_to_its_collector() -> None:
    broker = MemoryBroker()
    task = codec.encode(msgspec.structs.replace(TASK, audiences=("collect",)))
    await _keep(broker, codec.kind_of(Task), task)
    async with letters(broker) as found:
        with pytest.raises(UsageError, match="--retry-failed"):
            await replay(broker, found[0])
