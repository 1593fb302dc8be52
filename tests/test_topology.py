"""The topology table: what must hold for every queue, whatever RabbitMQ's version."""

import pytest

from broker import topology
from broker.topology import QueueSpec

WORKER = "agent-0123"
QUORUM = [
    *(topology.task_queue(lane, "calculator") for lane in (*topology.LANES, "suspect")),
    topology.held_queue(WORKER, "calculator"),
    topology.verify_queue("calculator"),
    *(topology.sink_queue(shard) for shard in range(topology.SINK_SHARDS)),
    topology.run_results_queue("collect", "run"),
    *(queue for stage in topology.STAGES for queue in topology.ladder_queues(stage)),
    topology.dead_queue(),
    topology.kept_queue(),
]
CLASSIC = [
    topology.model_queue("normal", "Qwen/Qwen2.5-7B"),
    topology.tool_queue("calculator"),
    topology.session_queue(WORKER),
    topology.inbox(WORKER),
    topology.control_queue(WORKER),
]


@pytest.mark.parametrize("queue", QUORUM, ids=lambda q: q.name)
def test_a_quorum_queue_never_drops_silently(queue: QueueSpec) -> None:
    assert queue.arguments["x-queue-type"] == "quorum"
    assert queue.arguments["x-overflow"] == "reject-publish"
    if "x-dead-letter-exchange" in queue.arguments:
        assert queue.arguments["x-dead-letter-strategy"] == "at-least-once"
    assert queue.arguments.get("x-delivery-limit", 1) != -1
    assert "x-max-priority" not in queue.arguments


@pytest.mark.parametrize("queue", CLASSIC, ids=lambda q: q.name)
def test_a_classic_queue_has_only_arguments_that_classic_queues_know(queue: QueueSpec) -> None:
    assert queue.arguments["x-queue-type"] == "classic"
    assert not {"x-delivery-limit", "x-dead-letter-strategy"} & set(queue.arguments)


@pytest.mark.parametrize("queue", QUORUM + CLASSIC, ids=lambda q: q.name)
def test_every_exchange_that_is_named_is_declared_with_its_queue(queue: QueueSpec) -> None:
    declared = {e.name for e in queue.needs} | {b.exchange.name for b in queue.bindings}
    named = queue.arguments.get("x-dead-letter-exchange")
    assert named is None or named in declared
    assert queue.bindings


def test_names_are_unique_and_carry_the_version() -> None:
    names = [q.name for q in QUORUM + CLASSIC]
    assert len(set(names)) == len(names)
    assert all(name.startswith("warren.q.v1.") for name in names)


def test_a_ladder_room_has_one_time_to_live_and_keeps_the_key() -> None:
    for queue in topology.ladder_queues("model"):
        delay = queue.name.rsplit(".", 1)[1]
        assert queue.arguments["x-message-ttl"] == int(topology.LADDER_S[delay] * 1000)
        assert "x-dead-letter-routing-key" not in queue.arguments
        assert queue.arguments["x-dead-letter-exchange"] == topology.MODEL.name


def test_a_held_queue_outlives_its_messages_by_far_and_returns_them_to_the_resume_lane() -> None:
    arguments = topology.held_queue(WORKER, "calculator").arguments
    assert arguments["x-dead-letter-routing-key"] == topology.task_key("resume", "calculator")
    assert int(arguments["x-expires"]) > 1000 * int(arguments["x-message-ttl"])


def test_a_models_name_is_one_word_of_its_queue() -> None:
    queue = topology.model_queue("normal", "Qwen/Qwen2.5-7B")
    assert queue.name.count(".") == topology.queue_name("model", "normal", "x").count(".")
