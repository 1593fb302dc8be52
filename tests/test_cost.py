"""What a rollout costs, in counts that cannot flake: messages, confirms, journal operations, packs.

A rollout of two model calls and one tool call, embedded. Who makes one of these numbers grow pays
for it in every rollout of every run: docs/performance.md has their price.
"""

import asyncio
import random
from array import array
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from broker import codec
from broker.base import Outgoing
from broker.journal.base import Journal
from broker.journal.redis import RedisJournal
from broker.memory import MemoryBroker
from broker.memory_node import MemoryNode
from broker.messages import Limits, ModelCall, ModelResult, Tokens
from broker.topology import QueueSpec, ladder_queues
from sinks import tokens
from sinks.rows import row_for
from tests.support import services
from tests.support.calls import model_call
from tests.support.journals import listeners
from tests.support.rig import Rig, message, tool_call
from workers.model_gateway.config import ModelConfig
from workers.model_gateway.gateway import request_of, terms_of
from workers.model_gateway.remarks import Remarks
from workers.spec import EnvironmentSpec, Item, RewardSpec, Rollout, VerifierContext

ROLLOUTS = 20
#: Per model call, where they are told.
_TOKENS = 4000
_LONG = Limits(max_steps=50, timeout_s=20.0, call_timeout_s=10.0)


class CountingNode(MemoryNode):
    """Counts what is published, by the kind of the message."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: Counter[str] = Counter()
        self.size_bytes: Counter[str] = Counter()
        self.durable: set[str] = set()
        """Kinds that the broker is asked to keep on disk."""

    def publish(self, message: Outgoing) -> None:
        self.messages[message.kind] += 1
        if message.persistent:
            self.durable.add(message.kind)
        self.size_bytes[message.kind] += len(message.body)
        super().publish(message)


class CountingBroker(MemoryBroker):
    """Counts declarations, by queue; each takes a turn of the loop, as with a real broker."""

    def __init__(self, node: MemoryNode, declared: Counter[str]) -> None:
        super().__init__(node)
        self._counted = declared

    def connect(self) -> "CountingBroker":
        return CountingBroker(self._node, self._counted)

    async def declare(self, queues: Sequence[QueueSpec]) -> None:
        self._counted.update(queue.name for queue in queues)
        await asyncio.sleep(0)
        await super().declare(queues)


class CountingJournal:
    """Counts operations, by their name; a worker's lease and listening are none of a rollout's."""

    def __init__(self, journal: Journal, operations: Counter[str]) -> None:
        self._journal = journal
        self._operations = operations

    def __getattr__(self, name: str) -> Any:
        operation = getattr(self._journal, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            if "lease" not in name and name != "listen":
                self._operations[name] += 1
            return operation(*args, **kwargs)

        return counted


def plays(items: list[Item], _: ModelCall) -> list[Item]:
    if any(item.get("type") == "function_call_output" for item in items):
        return [message("It is 4 degrees.")]
    return [tool_call("get_weather", city="Oslo")]


async def _full_marks(rollout: Rollout, ctx: VerifierContext) -> float:
    return 1.0


def _sampled(items: list[Item], continues: bool) -> ModelResult:
    """The answer with tokens that nothing can compress."""
    noise = random.Random(str(items))
    ids = array("i", (noise.randrange(150_000) for _ in range(_TOKENS)))
    logprobs = array("f", (-noise.random() for _ in range(_TOKENS)))
    return ModelResult(
        items=codec.pack(items),
        finish_reason="stop",
        tokens=Tokens(
            prompt_ids=b"",
            generated_ids=ids.tobytes(),
            logprobs=logprobs.tobytes(),
        ),
        continues=continues,
        model="m",
    )


@asynccontextmanager
async def rig(
    operations: Counter[str], journal: Journal | None = None
) -> AsyncGenerator[tuple[Rig, CountingNode], None]:
    spec = EnvironmentSpec(name="e", rewards=[RewardSpec("r", 1.0, _full_marks, needs_ctx=False)])
    made = Rig(spec, plays, {"get_weather": lambda arguments: "4 degrees, snow"})
    node = CountingNode()
    made.node = MemoryBroker(node)
    made.journal = cast(Any, CountingJournal(journal or made.journal, operations))
    made.executor_lives = journal is not None
    async with made, made.agent(), made.verifier():
        yield made, node


async def test_a_rollout_of_three_calls_is_nine_messages_and_six_confirms() -> None:
    async with rig(Counter()) as (made, node):
        await made.submit(*range(ROLLOUTS))
        await made.wait(ROLLOUTS)
    assert {kind: count / ROLLOUTS for kind, count in node.messages.items()} == {
        "task.v1": 1,
        "modelcall.v1": 2,
        "toolcall.v1": 1,
        "reply.v1": 3,  # hints, without a confirm
        "trajectory.v1": 1,
        "result.v1": 1,
    }
    # the journal and the sweeps recover the others: each would be synced to disk by RabbitMQ
    assert node.durable == {"task.v1", "trajectory.v1", "result.v1"}


async def test_over_redis_replies_are_no_messages_and_no_operations_either(
    killable_redis: services.RedisProcess | services.Container,
) -> None:
    operations: Counter[str] = Counter()
    journal = await RedisJournal.connect(killable_redis.url)
    async with rig(operations, journal) as (made, node):
        await listeners(killable_redis.url, count=2)
        await made.submit(*range(ROLLOUTS))
        await made.wait(ROLLOUTS)
    await journal.close()
    assert {kind: count / ROLLOUTS for kind, count in node.messages.items()} == {
        "task.v1": 1,
        "modelcall.v1": 2,
        "toolcall.v1": 1,
        "trajectory.v1": 1,
        "result.v1": 1,
    }
    operations.pop("look", None)
    assert sum(operations.values()) / ROLLOUTS == 9


async def test_over_redis_tokens_are_no_replies_through_the_broker_but_one_read_each(
    killable_redis: services.RedisProcess | services.Container,
) -> None:
    operations: Counter[str] = Counter()
    journal = await RedisJournal.connect(killable_redis.url)
    async with rig(operations, journal) as (made, node):
        await listeners(killable_redis.url, count=2)
        made.model = lambda items, call: _sampled(plays(items, call), False)
        await made.submit(*range(ROLLOUTS))
        await made.wait(ROLLOUTS)
    await journal.close()
    assert "reply.v1" not in node.messages
    operations.pop("look", None)
    assert operations["result"] / ROLLOUTS == 2
    assert sum(operations.values()) / ROLLOUTS == 11


async def test_a_rollout_of_three_calls_is_nine_journal_operations() -> None:
    operations: Counter[str] = Counter()
    async with rig(operations) as (made, _):
        await made.submit(*range(ROLLOUTS))
        await made.wait(ROLLOUTS)
    operations.pop("look", None)  # sweeps come by the clock, not by the rollout
    assert {name: count / ROLLOUTS for name, count in operations.items()} == {
        "take": 1,
        "begin": 3,
        "finish": 3,
        "ended": 1,
        "keep_first": 1,  # the verdict
    }


async def test_what_the_first_rollouts_need_is_declared_once_though_they_come_all_at_once() -> None:
    spec = EnvironmentSpec(name="e", rewards=[RewardSpec("r", 1.0, _full_marks, needs_ctx=False)])
    made = Rig(spec, plays, {"get_weather": lambda arguments: "4 degrees, snow"})
    declared: Counter[str] = Counter()
    made.node = CountingBroker(MemoryNode(), declared)
    async with made, made.agent(), made.verifier():
        await made.submit(*range(ROLLOUTS))
        await made.wait(ROLLOUTS)
    assert [declared[queue.name] for queue in ladder_queues("verify")] == [1, 1, 1]


async def test_what_is_packed_and_read_per_rollout_does_not_grow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counts: Counter[str] = Counter()
    for name in ("pack", "read", "unpack"):
        monkeypatch.setattr(codec, name, _counting(counts, name, getattr(codec, name)))
    async with rig(Counter()) as (made, _):
        await made.submit(*range(ROLLOUTS))
        await made.wait(ROLLOUTS)
    per_rollout = {name: count / ROLLOUTS for name, count in counts.items()}
    assert per_rollout["pack"] <= 25
    assert per_rollout["read"] <= 19
    assert per_rollout["unpack"] <= 10


def test_tools_and_options_are_unpacked_once_for_all_calls_that_say_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counts: Counter[str] = Counter()
    monkeypatch.setattr(codec, "unpack", _counting(counts, "unpack", codec.unpack))
    large = "x" * 40_000  # not kept
    for described, unpacked in (("a", 2), ("a", 2), ("b", 4), (large, 6), (large, 8)):
        tools = [{"type": "function", "name": "add", "description": described}]
        terms = terms_of(model_call(tools=codec.pack(tools), options=codec.pack({"seed": 7})))
        assert (terms.tools, terms.options) == (tools, {"seed": 7})
        assert counts["unpack"] == unpacked


def test_an_item_is_unpacked_once_for_all_calls_that_repeat_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = [{"role": "user", "content": f"remark {n}"} for n in range(20)]
    packed = tuple(codec.pack(item) for item in said)
    counts: Counter[str] = Counter()
    monkeypatch.setattr(codec, "unpack", _counting(counts, "unpack", codec.unpack))
    config, remarks = ModelConfig(name="m"), Remarks()
    for n in range(1, 21):
        request = request_of(model_call(input=packed[:n], known_items=n // 2), config, remarks)
        assert (request.items, request.known_items) == (said[:n], n // 2)
    assert counts["unpack"] == 20


async def test_what_a_rollout_sends_stays_small() -> None:
    async with rig(Counter()) as (made, node):
        await made.submit(*range(ROLLOUTS))
        await made.wait(ROLLOUTS)
    assert sum(node.size_bytes.values()) / ROLLOUTS < 4_600


@pytest.mark.parametrize("continues", [False, True])
async def test_a_token_travels_once_per_hop_and_in_calls_only_where_the_server_goes_on_from_it(
    continues: bool,
) -> None:
    async with rig(Counter()) as (made, node):
        made.model = lambda items, call: _sampled(plays(items, call), continues)
        await made.submit(*range(ROLLOUTS))
        await made.wait(ROLLOUTS)
    per_token = {k: v / ROLLOUTS / (2 * _TOKENS) for k, v in node.size_bytes.items()}
    for hop in ("reply.v1", "trajectory.v1", "result.v1"):
        assert per_token[hop] < 8.7, hop  # an id and a logprob, four bytes each
    # the first call's ids, half of all, stand in the second call
    assert 1 < per_token["modelcall.v1"] < 2.6 if continues else per_token["modelcall.v1"] < 0.5
    assert per_token["task.v1"] + per_token["toolcall.v1"] < 0.5


async def test_a_row_holds_each_token_once_and_they_are_unpacked_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with rig(Counter()) as (made, _):
        made.model = lambda items, call: _sampled(plays(items, call), False)
        await made.submit(0)
        (result,) = await made.wait(1)
    counts: Counter[str] = Counter()
    for name in ("ints", "floats"):
        monkeypatch.setattr(tokens, name, _counting(counts, name, getattr(tokens, name)))
    row = row_for(result).data
    assert counts == {"ints": 4, "floats": 2}  # two calls: prompt, generated, logprobs
    assert row.count(b'"generation_token_ids"') == row.count(b'"generation_log_probs"') == 2


async def test_a_long_conversation_is_packed_once_however_often_it_is_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def long(items: list[Item], _: ModelCall) -> list[Item]:
        done = sum(item.get("type") == "function_call_output" for item in items)
        if done == steps - 1:
            return [message("done")]
        return [tool_call("get_weather", call_id=f"c{done}", city="Oslo")]

    counts: dict[int, int] = {}
    for steps in (10, 20):
        packs: Counter[str] = Counter()
        async with rig(Counter()) as (made, _):
            made.model = long
            with monkeypatch.context() as patch:
                patch.setattr(codec, "pack", _counting(packs, "pack", codec.pack))
                await made.submit(0, limits=_LONG)
                await made.wait(1)
        counts[steps] = packs["pack"]
    assert counts[20] - counts[10] <= 10 * 12  # linear in the steps


def _counting(counts: Counter[str], name: str, real: Callable[..., Any]) -> Callable[..., Any]:
    def counted(*args: Any, **kwargs: Any) -> Any:
        counts[name] += 1
        return real(*args, **kwargs)

    return counted
