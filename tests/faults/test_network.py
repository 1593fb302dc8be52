"""Between workers and servers: cuts, stalls, delays, zombies, and limits of the broker."""

import signal
import time

import pytest

from tests.support.cluster import Cluster
from tests.support.proxy import Proxy
from tests.support.runs import Worker

TASKS = 200
FEW = 60
KINDS = ("agent", "tool", "model", "verifier")


def _behind(warren: Cluster, proxy: Proxy, *kinds: str) -> list[Worker]:
    """Replace the workers of these kinds by such whose broker is behind a proxy."""
    for kind in set(kinds):
        for worker in warren.living(kind):
            warren.kill(worker)
    return warren.start(*kinds, WARREN_BROKER=proxy.url(warren.rabbitmq.url))


def test_connections_are_cut_under_load(warren: Cluster) -> None:
    """Of every kind one of two is behind the proxy."""
    proxy = warren.proxy(warren.rabbitmq)
    for kind in KINDS:
        warren.kill(warren.living(kind)[0])
    warren.start(*KINDS, WARREN_BROKER=proxy.url(warren.rabbitmq.url))
    warren.model.latency_s = 1.0
    run = warren.enqueue(FEW // 2)
    for answers in (FEW // 4, FEW // 2):
        warren.answered(answers)
        warren.background.call(proxy.cut)
    run.check()


def test_a_frozen_agent_is_replaced_and_wakes_up_harmless(warren: Cluster) -> None:
    proxy = warren.proxy(warren.rabbitmq)
    (frozen,) = warren.start("agent", WARREN_BROKER=proxy.url(warren.rabbitmq.url))
    run = warren.enqueue(FEW)
    warren.answered(FEW // 2)
    frozen.signal(signal.SIGSTOP)
    warren.background.call(proxy.cut)  # what the missed heartbeats would do half a minute later
    warren.until(lambda: len(run.rows()) > FEW // 2)
    frozen.signal(signal.SIGCONT)
    run.check()


@pytest.mark.faults
@pytest.mark.parametrize("kind", ["tool", "model", "verifier", "sink"])
def test_a_frozen_worker_is_replaced_and_wakes_up_harmless(warren: Cluster, kind: str) -> None:
    proxy = warren.proxy(warren.rabbitmq)
    if kind == "sink":  # only one of them is active
        for sink in warren.living("sink"):
            warren.kill(sink)
    (frozen,) = warren.start(kind, WARREN_BROKER=proxy.url(warren.rabbitmq.url))
    if kind == "sink":
        warren.start("sink")
    run = warren.enqueue(TASKS)
    warren.answered(TASKS // 2)
    warren.freeze(frozen)
    warren.background.call(proxy.cut)
    warren.back_to_work(run)
    time.sleep(4)  # the fault itself: long enough for others to have taken its work
    frozen.signal(signal.SIGCONT)
    run.check()


@pytest.mark.faults
def test_a_slow_network(warren: Cluster) -> None:
    proxy = warren.proxy(warren.rabbitmq)
    proxy.delay_s = 0.1
    _behind(warren, proxy, *KINDS)
    warren.enqueue(TASKS).check(120)


@pytest.mark.faults
def test_a_cut_at_every_stair(warren: Cluster) -> None:
    proxy = warren.proxy(warren.rabbitmq)
    _behind(warren, proxy, *KINDS)
    run = warren.enqueue(TASKS)
    warren.answered(20)
    proxy.more_bytes_each_time = 997
    proxy.cut_after_bytes = 4000
    warren.background.call(proxy.cut)
    time.sleep(15)  # the fault itself
    proxy.cut_after_bytes = None
    warren.background.call(proxy.cut)
    run.check()


@pytest.mark.faults
def test_redis_is_cut_off(warren: Cluster) -> None:
    proxy = warren.proxy(warren.redis)
    for kind in KINDS:
        for worker in warren.living(kind):
            warren.kill(worker)
    warren.start(*KINDS, WARREN_REDIS=proxy.url(warren.redis.url))
    run = warren.enqueue(TASKS)
    for answers in (TASKS // 4, TASKS // 2, TASKS):
        warren.answered(answers)
        warren.background.call(proxy.lose_next_answer)
        warren.background.call(proxy.cut)
    run.check()


def test_a_memory_alarm_stops_publishers_only_while_it_lasts(warren: Cluster) -> None:
    run = warren.enqueue(FEW // 2, "--window", "20")
    warren.answered(FEW // 4)
    warren.rabbitmq.ctl("set_vm_memory_high_watermark", "absolute", "1MB")
    try:
        warren.until(lambda: warren.model.in_flight == 0)
    finally:
        warren.rabbitmq.ctl("set_vm_memory_high_watermark", "absolute", "2GB")
    run.check()


@pytest.mark.faults
@pytest.mark.timeout(240)
def test_rollouts_ten_times_as_long_as_the_consumer_timeout(warren: Cluster) -> None:
    settings = "application:set_env(rabbit, channel_tick_interval, 500)"
    timeout = "application:set_env(rabbit, consumer_timeout, {})"
    warren.rabbitmq.ctl("eval", f"{settings}, {timeout.format(1000)}.")
    try:
        for worker in warren.living("agent"):
            warren.stop(worker)
        agents = warren.start("agent", "agent", WARREN_RENEW_AFTER="0.4")
        warren.model.latency_s = 5.0
        run = warren.enqueue(30)
        run.check()
        assert not any(a.said("consuming again") for a in agents), "renewal came too late"
    finally:
        warren.rabbitmq.ctl("eval", f"{timeout.format(1800000)}.")
        for worker in warren.living("agent"):
            warren.kill(worker)
