"""What brokers do to messages: again, out of order, refused for want of room, without a taker."""

import contextlib
from collections.abc import Generator

import aio_pika
import pytest

from broker.topology import (
    MODEL,
    REPLY,
    RESULT,
    TASK,
    TOOL,
    VERIFY,
    model_key,
    model_queue,
    task_key,
    task_queue,
    tool_queue,
    verify_queue,
)
from tests.support.cluster import KINDS, Cluster
from tests.support.echo import echoing

TASKS = 60
FEW = 30
ENV = "lookup"
INBOX = "warren.q.v1.inbox."


def test_everything_that_is_said_is_said_three_times_late_and_out_of_order(
    warren: Cluster,
) -> None:
    queues = warren.rabbitmq.ctl("list_queues", "name").split()
    inboxes = [name.removeprefix(INBOX) for name in queues if name.startswith(INBOX)]
    keys = [
        (TASK.name, task_key("normal", ENV)),
        (MODEL.name, model_key("normal", "m")),
        (TOOL.name, ENV),
        (VERIFY.name, ENV),
        (RESULT.name, "#"),
        *[(REPLY.name, inbox) for inbox in inboxes],
    ]
    assert inboxes
    with warren.background.entered(echoing(warren.rabbitmq.url, keys, seed=1)) as echo:
        run = warren.enqueue(FEW)
        run.check()

        def all_was_said_again() -> bool:
            return min(echo.heard[exchange] for exchange, _ in keys) >= FEW and echo.silent

        warren.until(all_was_said_again)
        run.check()  # what came late changed nothing


@contextlib.contextmanager
def _consumer_timeout(warren: Cluster, timeout_ms: int) -> Generator[None]:
    settings = "application:set_env(rabbit, {}, {})"
    tick = settings.format("channel_tick_interval", 500)

    def become(ms: int) -> None:
        warren.rabbitmq.ctl("eval", f"{tick}, {settings.format('consumer_timeout', ms)}.")

    become(timeout_ms)
    try:
        yield
    finally:
        become(1_800_000)


def test_the_broker_closes_channels_whose_deliveries_are_held_for_long(warren: Cluster) -> None:
    warren.model.latency_s = 2.0
    with _consumer_timeout(warren, 1000):
        # channels that were opened before keep the timeout that they began with
        workers = warren.start("agent", "model")
        run = warren.enqueue(TASKS)
        warren.until(lambda: all(worker.said("consuming again") for worker in workers))
    run.check()
    for worker in workers:
        warren.kill(worker)


@pytest.mark.parametrize(
    "stage",
    ["model", *[pytest.param(s, marks=pytest.mark.faults) for s in ("task", "tool", "verify")]],
)
def test_queues_that_lose_their_binding_are_bound_again(warren: Cluster, stage: str) -> None:
    """Whoever finds no way for a message declares its queues again; nobody ends for it."""
    queue, exchange, key = {
        "task": (task_queue("normal", ENV), TASK, task_key("normal", ENV)),
        "model": (model_queue("normal", "m"), MODEL, model_key("normal", "m")),
        "tool": (tool_queue(ENV), TOOL, ENV),
        "verify": (verify_queue(ENV), VERIFY, ENV),
    }[stage]

    async def unbind() -> None:
        connection = await aio_pika.connect(warren.rabbitmq.url)
        async with connection:
            channel = await connection.channel()
            bound = await channel.get_queue(queue.name)
            await bound.unbind(exchange.name, key)

    run = warren.enqueue(TASKS, "--window", "20")
    warren.answered(TASKS // 2)
    before = [w for kind in KINDS for w in warren.living(kind)]
    warren.background.run(unbind())
    run.check()
    assert all(worker.alive for worker in before)


@contextlib.contextmanager
def _room_for(warren: Cluster, messages: int) -> Generator[None]:
    pattern = r"^warren\.q\.v1\.(task|model|tool|verify)\."
    limit = f'{{"max-length": {messages}}}'
    warren.rabbitmq.ctl("set_policy", "tiny", pattern, limit, "--apply-to", "queues")
    try:
        yield
    finally:
        warren.rabbitmq.ctl("clear_policy", "tiny")


def test_queues_that_are_full_hold_publishers_back_and_lose_nothing(warren: Cluster) -> None:
    for worker in warren.living("model"):
        warren.kill(worker)
    warren.start("model", prefetch=8)  # 64 rollouts have their calls in a queue with room for 4
    with _room_for(warren, 4):
        warren.enqueue(TASKS + FEW).check()
