"""After each fault the full rate is back within 10 s, and nothing was lost, doubled or repeated."""

import signal
import time
from collections.abc import Callable

import pytest

from tests.support.cluster import Cluster
from tests.support.proxy import Proxy
from tests.support.recovery import Pace, allowed_s, hurry, unhurried
from tests.support.runs import Worker

TASKS = 360
KINDS = ("agent", "tool", "model", "verifier")
Fault = Callable[[Cluster], float]
"""Does it; the moment at which it was over."""


def _kill(kind: str) -> Fault:
    def fault(warren: Cluster) -> float:
        warren.kill(warren.living(kind)[0])
        return time.monotonic()

    return fault


def _sigterm(kind: str) -> Fault:
    def fault(warren: Cluster) -> float:
        began = time.monotonic()
        warren.stop(warren.living(kind)[0])
        return began

    return fault


def _broker_kill(warren: Cluster) -> float:
    warren.rabbitmq.kill()
    warren.rabbitmq.start()
    return time.monotonic()


def _redis_kill(warren: Cluster) -> float:
    warren.redis.kill()
    time.sleep(2)  # the fault itself
    warren.redis.start()
    return time.monotonic()


def _redis_flush(warren: Cluster) -> float:
    warren.redis_say("FLUSHALL")
    return time.monotonic()


def _redis_stall(warren: Cluster) -> float:
    warren.redis_say("CLIENT PAUSE 5000 ALL")
    time.sleep(5)  # the fault itself
    return time.monotonic()


def _close_all(warren: Cluster) -> float:
    warren.rabbitmq.ctl("close_all_connections", "drill")
    return time.monotonic()


def _memory_alarm(warren: Cluster) -> float:
    warren.rabbitmq.ctl("set_vm_memory_high_watermark", "absolute", "1MB")
    try:
        time.sleep(5)  # the fault itself
    finally:
        warren.rabbitmq.ctl("set_vm_memory_high_watermark", "absolute", "2GB")
    return time.monotonic()


FAULTS: dict[str, Fault] = {
    **{f"kill-{kind}": _kill(kind) for kind in (*KINDS, "sink")},
    **{f"sigterm-{kind}": _sigterm(kind) for kind in ("agent", "model")},
    "broker-kill": _broker_kill,
    "close-all-connections": _close_all,
    "memory-alarm": _memory_alarm,
    "redis-kill": _redis_kill,
    "redis-flush": _redis_flush,
    "redis-stall": _redis_stall,
}


@pytest.mark.faults
@pytest.mark.parametrize("name", FAULTS)
def test_the_full_rate_is_back_within_ten_seconds(
    warren: Cluster, name: str, record_property: Callable[[str, object], None]
) -> None:
    if name == "kill-sink":
        warren.start("sink")  # the one that takes over
    run = unhurried(warren, TASKS)
    pace = Pace(warren, run)
    rate = pace.measure()
    ended = FAULTS[name](warren)
    seconds = pace.back(rate, ended)
    print(f"{name}: {rate:.1f} answers/s before, back after {seconds:.1f} s")
    record_property("recovery_s", round(seconds, 1))
    hurry(run)
    assert seconds < allowed_s(rate)


def _cut(warren: Cluster, proxy: Proxy) -> None:
    warren.background.call(proxy.cut)


def _stall(warren: Cluster, proxy: Proxy) -> None:
    warren.background.call(proxy.stall)
    time.sleep(5)  # the fault itself
    warren.background.call(proxy.resume)


@pytest.mark.faults
@pytest.mark.parametrize("fault", [_cut, _stall], ids=["cut", "stall"])
@pytest.mark.parametrize("server", ["broker", "redis"])
def test_the_full_rate_is_back_after_the_network_is(
    warren: Cluster, fault: Callable[[Cluster, Proxy], None], server: str
) -> None:
    proxy = warren.proxy(warren.rabbitmq if server == "broker" else warren.redis)
    _replace_all(warren, server, proxy)
    run = unhurried(warren, TASKS)
    pace = Pace(warren, run)
    rate = pace.measure()
    fault(warren, proxy)
    seconds = pace.back(rate, time.monotonic())
    print(f"{server} {fault.__name__[1:]}: back after {seconds:.1f} s")
    hurry(run)
    assert seconds < allowed_s(rate)


def _replace_all(warren: Cluster, server: str, proxy: Proxy) -> list[Worker]:
    """Two workers of each kind, whose way to this server leads through the proxy."""
    for kind in KINDS:
        for worker in warren.living(kind):
            worker.signal(signal.SIGTERM)
            warren.kill(worker)
    if server == "broker":
        return warren.start(*KINDS * 2, WARREN_BROKER=proxy.url(warren.rabbitmq.url))
    return warren.start(*KINDS * 2, WARREN_REDIS=proxy.url(warren.redis.url))
