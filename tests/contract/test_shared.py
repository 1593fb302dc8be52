"""What the gateways of a model share: the same promises in memory and in Redis."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator

import pytest

from broker.shared.base import Draw, PolicyUpdate, Shared, Spent
from broker.shared.memory import MemoryShared
from broker.shared.redis import RedisShared


@pytest.fixture(params=["memory", "redis"])
async def shared(request: pytest.FixtureRequest) -> AsyncIterator[Shared]:
    if request.param == "memory":
        yield MemoryShared()
        return
    url = request.getfixturevalue("redis_server").url
    store = await RedisShared.connect(url, patience_s=10)
    yield store
    await store.close()


@pytest.fixture
def model() -> str:
    return f"Qwen/{uuid.uuid4().hex}"


def wish(version: int = 1) -> PolicyUpdate:
    return PolicyUpdate(id=uuid.uuid4().hex, version=version, path="/w", mode="wait")


async def test_a_limit_is_two_seconds_worth_at_once_then_a_steady_rate(
    shared: Shared, model: str
) -> None:
    waits = [await shared.draw(model, [Draw("requests", 1, 600)]) for _ in range(120)]
    assert max(waits[:20]) == 0
    assert waits[-1] == pytest.approx(10, abs=2)
    assert waits == sorted(waits) or max(waits) < 11


async def test_what_is_given_back_can_be_taken_by_others(shared: Shared, model: str) -> None:
    assert await shared.draw(model, [Draw("tokens", 6000, 600)]) > 500
    await shared.draw(model, [Draw("tokens", -6000, 600)])
    assert await shared.draw(model, [Draw("tokens", 10, 600)]) == 0


async def test_of_two_limits_the_longer_wait_counts(shared: Shared, model: str) -> None:
    draws = [Draw("requests", 1, 600), Draw("tokens", 1000, 600)]
    assert await shared.draw(model, draws) > 90


async def test_models_have_limits_of_their_own(shared: Shared, model: str) -> None:
    await shared.draw(model, [Draw("requests", 1000, 60)])
    assert await shared.draw(model + "x", [Draw("requests", 1, 60)]) == 0


async def test_what_runs_spend_adds_up_by_run(shared: Shared, model: str) -> None:
    assert await shared.spent(model) == Spent(0, 0.0)
    await shared.spend(model, Spent(10, 0.25))
    await shared.spend(model, Spent(5, 0.5))
    await shared.spend(model + "x", Spent(1, 1.0))
    assert await shared.spent(model) == Spent(15, 0.75)


async def test_an_update_is_asked_for_led_by_one_and_settled(shared: Shared, model: str) -> None:
    assert await shared.policy(model) is None
    update = wish(7)
    state = await shared.ask(model, update)
    assert (state.update, state.phase, state.open) == (update, "asked", True)
    assert await shared.lead(model, update.id, "a")
    assert not await shared.lead(model, update.id, "b")
    assert await shared.lead(model, update.id, "a"), "stays the leader"
    state = await shared.ask(model, wish(8))
    assert (state.update, state.phase) == (update, "loading"), "one at a time"
    await shared.settle(model, update)
    state = await shared.ask(model, update)
    assert (state.phase, state.version, state.open) == ("done", 7, False)
    assert not await shared.lead(model, update.id, "b")


async def test_a_failed_update_keeps_the_version_and_makes_room_for_the_next(
    shared: Shared, model: str
) -> None:
    first, second = wish(1), wish(2)
    await shared.ask(model, first)
    await shared.settle(model, first)
    await shared.ask(model, second)
    await shared.settle(model, second, "disk full")
    state = await shared.policy(model)
    assert state is not None
    assert (state.phase, state.error, state.version) == ("failed", "disk full", 1)
    assert (await shared.ask(model, wish(3))).phase == "asked"


async def test_one_restores_what_is_done_and_nobody_leads_the_next_update_meanwhile(
    shared: Shared, model: str
) -> None:
    update, following = wish(1), wish(2)
    await shared.ask(model, update)
    assert not await shared.restore(model, update.id, "a"), "it is open"
    await shared.settle(model, update)
    assert await shared.restore(model, update.id, "a")
    assert not await shared.restore(model, update.id, "b")
    await shared.ask(model, following)
    assert not await shared.lead(model, following.id, "b")
    assert await shared.restore(model, update.id, "a"), "what was begun goes on"
    await shared.restored(model, "b")
    assert not await shared.lead(model, following.id, "b"), "it was not b's"
    await shared.restored(model, "a")
    assert not await shared.restore(model, update.id, "a"), "it is not the newest any more"
    assert await shared.lead(model, following.id, "b")


async def test_only_what_nobody_has_begun_can_be_withdrawn(shared: Shared, model: str) -> None:
    update = wish()
    await shared.ask(model, update)
    assert await shared.withdraw(model, update.id)
    assert not await shared.lead(model, update.id, "a")
    again = wish()
    await shared.ask(model, again)
    assert await shared.lead(model, again.id, "a")
    assert not await shared.withdraw(model, again.id)


async def test_an_end_is_known_though_the_store_forgot_the_update(
    shared: Shared, model: str
) -> None:
    await shared.settle(model, wish(5))
    state = await shared.policy(model)
    assert state is not None
    assert (state.phase, state.version) == ("done", 5)


async def test_two_connections_keep_one_limit_together(redis_server: object, model: str) -> None:
    url = redis_server.url  # type: ignore[attr-defined]
    a, b = await RedisShared.connect(url), await RedisShared.connect(url)
    started, taken = time.monotonic(), 0

    async def draw(store: RedisShared) -> None:
        nonlocal taken
        while time.monotonic() - started < 2:
            await asyncio.sleep(await store.draw(model, [Draw("requests", 1, 1200)]))
            taken += 1

    async with asyncio.TaskGroup() as group:
        for store in (a, b):
            for _ in range(3):
                group.create_task(draw(store))
    lasted_s = time.monotonic() - started
    await a.close()
    await b.close()
    assert 20 * lasted_s * 0.8 <= taken <= 20 * (lasted_s + 2) + 1
