"""What a worker tells about itself: metrics counted at the seams, health, readiness, logs."""

import asyncio
import json
import logging
import urllib.error
import urllib.request
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from prometheus_client.exposition import generate_latest

from broker.base import Delivery, Outgoing
from broker.errors import (
    BrokerClosed,
    JournalUnavailable,
    QueueFull,
    Unroutable,
    UsageError,
)
from broker.journal.base import CallRef, Finished, Gone, Lost, Run
from broker.journal.memory import MemoryJournal, MemoryRuns
from broker.masking import MASK
from broker.memory import MemoryBroker
from broker.metered import MeteredBroker, family, metered_journal
from broker.metrics import EndpointFigures, Metrics
from broker.topology import DEAD, TASK, ladder_exchange, task_key, task_queue
from sinks.totals import RowSummary
from tests.support.journals import call, finished, taken
from warren.logs import Masking, human_line, json_line
from warren.observe import checks_of, count_rows, serving


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"warren_{name}", labels)


def get(port: int, path: str) -> tuple[int, str]:
    """Status and body; blocking."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as e:
        with e:
            return e.code, e.read().decode()


def test_families_are_few() -> None:
    assert family(task_queue("normal", "calculator").name) == "task"
    assert family(DEAD.name) == "dead"
    assert family(ladder_exchange("tool", "5s").name) == "retry"
    assert family("somebody.elses") == "other"


async def test_a_metered_broker_counts_publishes_deliveries_and_how_they_end() -> None:
    metrics = Metrics("agent", "0")
    broker = MeteredBroker(MemoryBroker(), metrics)
    metrics.watch(broker)
    queue = task_queue("normal", "e")
    await broker.declare([queue])
    message = Outgoing(exchange=TASK.name, key=task_key("normal", "e"), body=b"x", kind="task.v1")
    await broker.publish(message)
    with pytest.raises(Unroutable):
        await broker.publish(Outgoing(exchange=TASK.name, key="nobody", body=b"x"))
    assert value(metrics, "amqp_published_total", exchange="task", outcome="confirmed") == 1
    assert value(metrics, "amqp_published_total", exchange="task", outcome="unroutable") == 1

    arrived: asyncio.Queue[Delivery] = asyncio.Queue()
    async with asyncio.timeout(10), broker.consume(queue.name, 7, arrived.put_nowait):
        first = await arrived.get()
        assert (first.body, first.kind, first.key) == (b"x", "task.v1", "normal.e")
        assert value(metrics, "slots", queue="task") == 7
        assert value(metrics, "in_hand", queue="task") == 1
        assert value(metrics, "amqp_delivered_total", queue="task", redelivered="yes") == 0
        first.give_back()
        second = await arrived.get()
        assert second.redelivered
        second.ack()
    assert value(metrics, "slots", queue="task") == 0
    assert value(metrics, "in_hand", queue="task") == 0
    assert value(metrics, "amqp_delivered_total", queue="task", redelivered="yes") == 1
    for outcome in ("ack", "given_back"):
        assert value(metrics, "amqp_settled_total", queue="task", outcome=outcome) == 1
    assert value(metrics, "amqp_reconnects_total") == 0
    await broker.close()


async def test_a_delivery_that_the_broker_took_back_is_counted_as_stale_and_each_once() -> None:
    metrics, node = Metrics("agent", "0"), MemoryBroker()
    broker, queue = MeteredBroker(node, metrics), task_queue("normal", "e")
    await broker.declare([queue])
    await broker.publish(Outgoing(exchange=TASK.name, key=task_key("normal", "e"), body=b"x"))
    arrived: asyncio.Queue[Delivery] = asyncio.Queue()
    async with asyncio.timeout(10), broker.consume(queue.name, 7, arrived.put_nowait):
        lost = await arrived.get()
        node.break_connection()
        again = await arrived.get()
        for _ in range(2):
            lost.ack()
            again.ack()
    for outcome in ("stale", "ack"):
        assert value(metrics, "amqp_settled_total", queue="task", outcome=outcome) == 1
        assert value(metrics, "work_seconds_count", queue="task", outcome=outcome) == 1
    assert value(metrics, "in_hand", queue="task") == 0
    await broker.close()


class Refusing(MemoryBroker):
    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self._error = error

    async def publish(self, message: Outgoing) -> None:
        raise self._error


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (QueueFull("full"), "full"),
        (BrokerClosed("away"), "failed"),
        (asyncio.CancelledError(), "failed"),
    ],
)
async def test_a_publish_that_fails_is_counted_as_what_it_was_and_raises(
    error: BaseException, outcome: str
) -> None:
    metrics = Metrics("agent", "0")
    broker = MeteredBroker(Refusing(error), metrics)
    for _ in range(2):
        with pytest.raises(type(error)):
            await broker.publish(Outgoing(exchange=TASK.name, key="k", body=b"x"))
    assert value(metrics, "amqp_published_total", exchange="task", outcome=outcome) == 2
    assert value(metrics, "amqp_confirm_seconds_count", exchange="task") == 2


async def test_a_metered_journal_counts_operations_answers_and_replays() -> None:
    metrics = Metrics("agent", "0")
    journal = metered_journal(MemoryJournal(), metrics)
    run = await journal.take("r", "inbox")
    assert isinstance(run, Run)
    call = CallRef(rollout="r", epoch=run.epoch, path="0", carrier="c", request_hash=b"h", held=0)
    await journal.begin(call)
    await journal.finish(call, b"result")
    await journal.begin(call)
    await journal.take("r", "inbox")
    for op, result in (("begin", "go"), ("begin", "found"), ("finish", "finished")):
        assert value(metrics, "journal_results_total", op=op, result=result) == 1
    assert value(metrics, "journal_results_total", op="take", result="run") == 2
    assert value(metrics, "replayed_calls_total") == 1
    assert value(metrics, "journal_op_seconds_count", op="begin") == 2


async def test_replies_that_the_journal_tells_are_counted_where_they_go_and_where_they_come() -> (
    None
):
    class Telling(MemoryJournal):
        async def listen(
            self, inbox: str, hear: Callable[[bytes], None], missed: Callable[[], None]
        ) -> None:
            hear(b"reply")

        async def finish(self, *args: Any, **kwargs: Any) -> Finished | Gone | Lost:
            done = await super().finish(*args, **kwargs)
            return replace(done, told=True) if isinstance(done, Finished) else done

    metrics = Metrics("agent", "0")
    journal = metered_journal(Telling(), metrics)
    heard: list[bytes] = []
    await journal.listen("inbox", heard.append, heard.clear)
    run = await taken(journal, "r")
    await finished(journal, call(run, "r"))
    assert (heard, value(metrics, "journal_heard_total")) == ([b"reply"], 1)
    assert value(metrics, "journal_told_total") == 1
    assert value(metrics, "journal_op_seconds_count", op="listen") is None


async def test_a_failing_journal_is_counted_and_raises() -> None:
    class Down(MemoryJournal):
        async def renew_lease(self, inbox: str, for_s: float | None = None) -> None:
            raise JournalUnavailable("down")

    metrics = Metrics("agent", "0")
    with pytest.raises(JournalUnavailable):
        await metered_journal(Down(), metrics).renew_lease("inbox")
    assert value(metrics, "journal_errors_total", op="renew_lease") == 1


async def test_the_endpoints_answer_on_a_free_port() -> None:
    metrics = Metrics("sink", "1.2.3")
    row = RowSummary(
        run="r",
        generation="g",
        rollout_id="r/0/0",
        task_index=0,
        repeat=0,
        status="completed",
        error_kind=None,
        reward=1.0,
        model_calls=1,
        tool_calls=0,
        prompt_tokens=10,
        generated_tokens=5,
        cost_usd=0.0,
    )
    partial(count_rows, metrics)([row, row])
    async with serving(metrics, {}, host="127.0.0.1", port=0) as port:
        status, text = await asyncio.to_thread(get, port, "/metrics")
        assert status == 200
        assert 'warren_worker_info{kind="sink",version="1.2.3"} 1.0' in text
        assert 'warren_sink_rows_total{error="",status="completed"} 2.0' in text
        assert 'warren_model_tokens_total{direction="prompt"} 20.0' in text
        assert "process_resident_memory_bytes" in text
        assert await asyncio.to_thread(get, port, "/healthz") == (200, "ok\n")
        with pytest.raises(UsageError, match="cannot serve metrics on 127"):
            async with serving(Metrics("sink", "0"), {}, host="127.0.0.1", port=port):
                raise AssertionError("the port was taken")


async def test_ready_means_connected_answering_and_consuming() -> None:
    class Silent(MemoryRuns):
        silent = False

        async def progress(self, run: str) -> None:
            if self.silent:
                raise JournalUnavailable("silent")

    broker, runs, consuming = MemoryBroker(), Silent(), asyncio.Event()
    checks = checks_of(broker, runs, consuming)
    async with serving(Metrics("agent", "0"), checks, host="127.0.0.1", port=0) as port:
        status, text = await asyncio.to_thread(get, port, "/readyz")
        assert (status, json.loads(text)["consuming"]) == (503, False)
        consuming.set()
        status, text = await asyncio.to_thread(get, port, "/readyz")
        assert (status, json.loads(text)["ready"]) == (200, True)
        runs.silent = True
        status, text = await asyncio.to_thread(get, port, "/readyz")
        assert (status, json.loads(text)["journal"]) == (503, False)
        runs.silent = False
        await broker.close()
        status, text = await asyncio.to_thread(get, port, "/readyz")
        assert (status, json.loads(text)["broker"]) == (503, False)


def record(message: str, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("broker.serve", logging.WARNING, "f", 1, message, None, None)
    vars(made).update(extra)
    return made


def test_a_log_line_carries_its_data() -> None:
    line = Masking(human_line, frozenset()).format(record("dead letter", queue="q", reason="a b"))
    assert line.endswith('warning broker.serve: dead letter queue=q reason="a b"')
    entry = json.loads(Masking(json_line, frozenset()).format(record("dead letter", queue="q")))
    assert (entry["message"], entry["level"], entry["queue"]) == ("dead letter", "warning", "q")


@pytest.mark.parametrize("render", [human_line, json_line])
def test_no_secret_reaches_a_log_line(render: object) -> None:
    formatter = Masking(
        human_line if render is human_line else json_line, frozenset({"sk-1234567"})
    )
    made = record("refused", url="amqp://u:hunter2@h", header="Bearer sk-1234567")
    try:
        raise ValueError("sk-1234567")
    except ValueError as e:
        made.exc_info = (ValueError, e, e.__traceback__)
    line = formatter.format(made)
    assert "hunter2" not in line
    assert "sk-1234567" not in line
    assert line.count(MASK) >= 3


async def test_a_histogram_is_exposed_as_prometheus_reads_it() -> None:
    metrics = Metrics("sink", "0")
    for reward in (0.0, 0.05, 1.0, 7.0):
        metrics.reward.labels().observe(reward)
    text = generate_latest(metrics.registry).decode()
    for line in (
        'warren_reward_bucket{le="0.0"} 1.0',
        'warren_reward_bucket{le="0.1"} 2.0',
        'warren_reward_bucket{le="1.0"} 3.0',
        'warren_reward_bucket{le="+Inf"} 4.0',
        "warren_reward_count 4.0",
        "warren_reward_sum 8.05",
        "# TYPE warren_reward histogram",
    ):
        assert line in text.splitlines()


@given(
    st.lists(st.sampled_from([0.0, 0.1, 0.25, 1.0, 2.5]) | st.floats(-1, 4), max_size=20),
    st.sets(st.integers(0, 20)),
)
def test_a_histogram_counts_each_value_once_whenever_they_are_gathered(
    values: list[float], gathered_before: set[int]
) -> None:
    metrics = Metrics("sink", "0")
    for n, each in enumerate(values):
        if n in gathered_before:
            metrics.gather()
        metrics.loop_lag_s.labels().observe(each)
    for bound in (0.1, 0.25, 2.5):
        below = value(metrics, "event_loop_lag_seconds_bucket", le=str(bound))
        assert below == sum(each <= bound for each in values)
    assert value(metrics, "event_loop_lag_seconds_count") == len(values)
    assert value(metrics, "event_loop_lag_seconds_sum") == pytest.approx(sum(values))


async def test_what_is_observed_is_gathered_though_nobody_asks_for_it() -> None:
    metrics, gathered = Metrics("sink", "0"), asyncio.Event()
    metrics.gather = gathered.set
    async with asyncio.timeout(10), serving(metrics, {}, host="127.0.0.1", port=0):
        await gathered.wait()


def test_endpoints_of_models_are_shown_as_they_stand() -> None:
    metrics = Metrics("model", "0")
    figures = [EndpointFigures("m", "http://a/v1", True, 64, 3, 2, 40)]
    metrics.watch_endpoints(lambda: figures)
    labels = {"model": "m", "endpoint": "http://a/v1"}
    value = metrics.registry.get_sample_value
    assert value("warren_endpoint_up", labels) == 1
    assert value("warren_endpoint_limit", labels) == 64
    assert value("warren_endpoint_requests_total", labels) == 40
    figures[0] = figures[0]._replace(up=False, in_flight=0)
    assert value("warren_endpoint_up", labels) == 0
    assert value("warren_endpoint_in_flight", labels) == 0
