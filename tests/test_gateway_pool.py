"""Endpoints: who gets a call, when one is down, how many requests it gets, who waits for whom."""

import asyncio
import contextlib
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from broker.messages import Usage
from broker.shared.memory import MemoryShared
from broker.topology import Lane
from tests.support import provider
from tests.support.gateway import config, output, serving
from workers.model_gateway.allowance import Allowance
from workers.model_gateway.congestion import Congestion, EngineLoad
from workers.model_gateway.endpoint import Endpoint
from workers.model_gateway.health import FAILURES_IN_A_ROW, LEAST_TRIALS, Health
from workers.model_gateway.openai_backend import OpenAIBackend
from workers.model_gateway.pool import choose
from workers.model_gateway.slots import Slots
from workers.spec import message_text


@contextlib.asynccontextmanager
async def held(slots: Slots, lane: Lane = "normal", run: str = "a") -> AsyncIterator[None]:
    """A slot, as a pool holds it for a call."""
    if not slots.taken():
        await slots.wait(lane, run)
    try:
        yield
    finally:
        slots.release()


class Clock:
    """Time that tests move."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


# Health


def test_one_success_in_five_seconds_keeps_an_endpoint_up_through_many_failures() -> None:
    clock = Clock()
    health = Health(clock)
    for _ in range(20):
        for _ in range(FAILURES_IN_A_ROW - 1):
            assert not health.failed("500")
        clock.now += 4
        assert not health.succeeded()
    assert health.usable


def test_ten_failures_and_five_silent_seconds_take_it_down() -> None:
    clock = Clock()
    health = Health(clock)
    assert not any(health.failed("500") for _ in range(9))
    clock.now += 5.1
    assert health.failed("500")
    assert not health.usable


def test_twenty_failures_in_a_row_take_it_down_at_once() -> None:
    health = Health(Clock())
    assert [health.failed("500") for _ in range(20)] == [False] * 19 + [True]


def test_a_trial_is_for_one_call_and_a_success_brings_it_back() -> None:
    health = Health(Clock())
    for _ in range(20):
        health.failed("500")
    assert health.open_trial()
    assert health.usable
    health.sent()
    assert not health.usable
    assert health.succeeded()
    assert health.usable


def test_trials_stay_within_a_tenth_of_the_traffic_before() -> None:
    clock = Clock()
    health = Health(clock)
    for _ in range(300):
        health.sent()
    for _ in range(20):
        health.failed("500")
    trials = 0
    for _ in range(60):
        trials += health.open_trial()
        if health.usable:
            health.sent()
        clock.now += 0.99
    assert trials == 30
    assert trials > LEAST_TRIALS


# Which endpoint


def replicas(count: int, limit: int = 8) -> list[Endpoint]:
    urls = [f"http://127.0.0.1:{port}/v1" for port in range(1, count + 1)]
    return [Endpoint(url, OpenAIBackend(config(url), url), limit) for url in urls]


def ranked(endpoints: list[Endpoint], rollout: str) -> list[Endpoint]:
    return sorted(endpoints, key=lambda e: e.rank(rollout), reverse=True)


async def test_a_rollout_keeps_its_endpoint_moves_while_it_is_down_and_goes_back() -> None:
    endpoints = replicas(3)
    rollouts = [f"run/{n}/0" for n in range(300)]
    home = {r: choose(ranked(endpoints, r)) for r in rollouts}
    share = Counter(e.url for e in home.values() if e)
    assert all(count > 60 for count in share.values())
    gone = endpoints[0]
    for _ in range(20):
        gone.health.failed("500")
    for rollout, endpoint in home.items():
        now = choose(ranked(endpoints, rollout))
        assert now is not gone
        assert endpoint is gone or now is endpoint, "nobody else moves"
    gone.health.succeeded()
    assert {r: choose(ranked(endpoints, r)) for r in rollouts} == home


async def test_a_full_endpoint_lends_its_rollouts_to_an_empty_one_only() -> None:
    first, second = replicas(2, limit=2)
    async with held(first.slots), held(first.slots):
        assert choose([first, second]) is second
        async with held(second.slots):
            assert choose([first, second]) is first


async def test_no_endpoint_is_chosen_while_all_are_down() -> None:
    endpoints = replicas(2)
    for endpoint in endpoints:
        for _ in range(20):
            endpoint.health.failed("500")
    assert choose(endpoints) is None


async def test_calls_go_on_at_the_other_replica_when_one_dies() -> None:
    async with provider.running() as a, provider.running() as b:
        async with serving(config(a.url, b.url)) as caller:
            await a.stop()
            async with asyncio.TaskGroup() as group:
                asked = [
                    group.create_task(caller.ask(rollout=f"run.g/{n}/0", deadline_s=30))
                    for n in range(60)
                ]
            status = {s.url: s for s in caller.gateway.endpoints()["m"]}
        assert all(task.result().error is None for task in asked)
        assert len(b.seen) == 60
        assert status[b.url].up
        assert status[b.url].requests == 60
        assert not status[a.url].up


# Slots


async def hold(slots: Slots, lane: Lane, run: str, log: list[str]) -> None:
    async with held(slots, lane, run):
        log.append(f"{lane}/{run}")
        await asyncio.sleep(0)


async def test_a_run_with_many_calls_does_not_starve_another() -> None:
    slots, log = Slots(1), list[str]()
    async with asyncio.TaskGroup() as group:
        for _ in range(100):
            group.create_task(hold(slots, "normal", "big", log))
        await asyncio.sleep(0)
        for _ in range(3):
            group.create_task(hold(slots, "normal", "small", log))
    assert max(n for n, who in enumerate(log) if who == "normal/small") < 12


async def test_lanes_share_by_weight() -> None:
    slots, log = Slots(1), list[str]()
    async with asyncio.TaskGroup() as group:
        for _ in range(100):
            group.create_task(hold(slots, "bulk", "b", log))
            group.create_task(hold(slots, "normal", "n", log))
    share = Counter(log[:50])
    assert share["normal/n"] == pytest.approx(40, abs=2)


async def test_a_cancelled_waiter_neither_keeps_nor_loses_a_slot() -> None:
    slots = Slots(1)
    for cancel_after_handing_out in (False, True):
        async with held(slots):
            waiter = asyncio.create_task(hold(slots, "normal", "b", []))
            await asyncio.sleep(0)
            if not cancel_after_handing_out:
                waiter.cancel()
        waiter.cancel()
        await asyncio.wait([waiter])
        assert (slots.held, slots.waiting) == (0, 0)
        assert slots.held < slots.limit


async def test_a_raised_limit_lets_waiters_in_and_a_lowered_one_takes_nobody_out() -> None:
    slots = Slots(1)
    async with held(slots):
        log: list[str] = []
        waiter = asyncio.create_task(hold(slots, "normal", "b", log))
        await asyncio.sleep(0)
        slots.limit = 2
        async with asyncio.timeout(1):
            await waiter
        slots.limit = 0
        assert slots.held == 1


# Congestion


def test_too_many_requests_lower_the_limit_to_its_floor_and_quiet_raises_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    monkeypatch.setattr("workers.model_gateway.congestion.time.monotonic", clock)
    slots = Slots(80)
    congestion = Congestion(slots)

    def seconds(count: int, throttled: int) -> None:
        for _ in range(count):
            clock.now += 1
            for n in range(20):
                congestion.answered(throttled=n < throttled)

    seconds(1, 20)
    assert slots.limit == 40
    seconds(30, 20)
    assert slots.limit == 10, "an eighth"
    slots._held = 80
    seconds(30, 0)
    assert slots.limit == 80


def test_an_engine_with_a_queue_or_a_full_cache_gets_fewer_requests() -> None:
    slots = Slots(100)
    congestion = Congestion(slots)
    congestion.engine_says(EngineLoad(running=10, waiting=30, kv_used=0.5))
    assert slots.limit == 80
    congestion.engine_says(EngineLoad(running=10, waiting=0, kv_used=0.97))
    assert slots.limit == 64
    slots._held = 64
    congestion.engine_says(EngineLoad(running=10, waiting=0, kv_used=0.3))
    assert slots.limit == 70


# Storms


@pytest.mark.parametrize("calls", [200, pytest.param(1000, marks=pytest.mark.faults)])
async def test_a_fifth_500s_and_a_fifth_429s_cost_no_more_requests_than_they_must(
    calls: int,
) -> None:
    ok = provider.says("ok")
    fates = itertools.cycle([provider.error(500, "x"), ok, provider.error(429, "x"), ok, ok])

    async def behave(seen: provider.Seen, writer: asyncio.StreamWriter) -> None:
        await next(fates)(seen, writer)

    async with (
        provider.running(behave) as server,
        serving(
            config(server.url, max_concurrency=1000, try_timeout_s=60), prefetch=1000
        ) as caller,
    ):
        async with asyncio.TaskGroup() as group:
            asked = [
                group.create_task(caller.ask(rollout=f"run.g/{n}/0", deadline_s=100))
                for n in range(calls)
            ]
        assert all(message_text(output(task.result())[0]) == "ok" for task in asked)
        print(f"{calls} calls in flight: {len(server.seen) / calls:.3f} requests per call")
        assert len(server.seen) <= 1.75 * calls


@pytest.mark.parametrize("down_s", [4, pytest.param(60, marks=pytest.mark.faults)])
async def test_a_provider_that_is_down_sees_few_probes_and_everything_soon_after(
    down_s: int,
) -> None:
    async with (
        provider.running(provider.error(503, "down")) as server,
        serving(config(server.url)) as caller,
        asyncio.TaskGroup() as group,
    ):
        asked = [
            group.create_task(caller.ask(rollout=f"run.g/{n}/0", deadline_s=100))
            for n in range(200)
        ]
        server.other["/v1/models"] = provider.answers({"data": []})
        await server.requests(200)
        await asyncio.sleep(1)
        before = len(server.seen) + len(server.probes)
        await asyncio.sleep(down_s)
        asked_while_down = len(server.seen) + len(server.probes) - before
        server.default, back = provider.says("ok"), time.monotonic()
        async with asyncio.timeout(5):
            results = [await task for task in asked]
        print(f"down for {down_s} s: {asked_while_down / down_s:.2f} requests and probes a second")
        print(f"back: all {len(asked)} calls answered after {time.monotonic() - back:.2f} s")
        assert asked_while_down <= 2 * down_s
        assert all(result.error is None for result in results)


# Limits per minute


async def test_tokens_per_minute_follow_what_calls_really_use() -> None:
    clock = Clock()
    allowance = limited(clock, tokens_per_minute=60_000)
    for _ in range(60):
        guessed = await allowance.admit()
        allowance.used(guessed, Usage(prompt_tokens=1500, generated_tokens=500))
    assert clock.now - 1000 == pytest.approx(60 * 2000 / 1000, rel=0.05)


async def test_a_failed_request_gives_its_tokens_back() -> None:
    clock = Clock()
    allowance = limited(clock, tokens_per_minute=60_000)
    for _ in range(10):
        allowance.used(await allowance.admit(), None)
    assert clock.now == 1000


async def test_a_call_that_is_given_up_while_it_waits_gives_back_what_it_took() -> None:
    clock = Clock()
    allowance = Allowance(MemoryShared(clock), "m", requests_per_minute=60)
    await allowance.admit()
    await allowance.admit()
    for _ in range(100):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await allowance.admit()
    clock.now += 1
    async with asyncio.timeout(1):
        await allowance.admit()


def limited(clock: Clock, **limits: float) -> Allowance:
    """An allowance whose waits take no time."""

    async def sleep(seconds: float) -> None:
        clock.now += seconds

    return Allowance(MemoryShared(clock), "m", **limits, sleep=sleep)
