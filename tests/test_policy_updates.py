"""New weights while rollouts run: two gateways, two engines, nothing lost, versions told."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable, Sequence

import pytest

from broker.errors import UsageError
from broker.journal.redis_client import Client
from broker.memory import MemoryBroker
from broker.messages import ModelResult, VersionSpan
from broker.shared.base import LEAD_S, PauseMode, PolicyUpdate, PolicyUpdateFailed, Shared
from broker.shared.memory import MemoryShared
from broker.shared.redis import RedisShared
from producers.policy import update_policy
from tests.support import vllm_server
from tests.support.gateway import Caller, config, output, serving
from tests.support.vllm_server import FakeVllm


@pytest.fixture(params=["memory", "redis"])
async def shared(request: pytest.FixtureRequest) -> AsyncIterator[Shared]:
    if request.param == "memory":
        yield MemoryShared()
        return
    client = await Client.connect(request.getfixturevalue("redis_server").url, patience_s=10)
    await client.do("DEL", "warren:policy:{m}", "warren:policy:{m}:leader")
    store = RedisShared(client)
    yield store
    await store.close()


@contextlib.asynccontextmanager
async def two_gateways(shared: Shared, engines: Sequence[FakeVllm]) -> AsyncIterator[Caller]:
    model = config(*(e.url for e in engines), api="vllm", max_concurrency=16)
    async with (
        serving(model, shared=shared) as first,
        serving(model, shared=shared, beside=first) as second,
    ):
        first.others.append(second)
        yield first


@contextlib.asynccontextmanager
async def two_engines(
    shared: Shared, *, b_refuses: bool = False
) -> AsyncIterator[tuple[Caller, FakeVllm, FakeVllm]]:
    """Who asks two gateways to two engines, and those."""
    async with (
        vllm_server.running() as a,
        vllm_server.running(refuses_weights=b_refuses) as b,
        two_gateways(shared, [a, b]) as caller,
    ):
        yield caller, a, b


@contextlib.asynccontextmanager
async def load(caller: Caller, rollouts: int = 12) -> AsyncIterator[list[ModelResult]]:
    """Rollouts that ask all the time; what they were answered."""
    results: list[ModelResult] = []
    ending = asyncio.Event()

    async def ask(n: int) -> None:
        while not ending.is_set():
            results.append(await caller.ask(rollout=f"run.g/{n}/0", deadline_s=30))

    async with asyncio.TaskGroup() as group:
        for n in range(rollouts):
            group.create_task(ask(n))
        yield results
        ending.set()


def words(result: ModelResult) -> list[int]:
    text = output(result)[0]["content"][0]["text"]
    return [int(word) for word in text.split()]


async def more(results: list[ModelResult], count: int = 20) -> None:
    """Wait until so many more were answered."""
    wanted = len(results) + count
    await eventually(lambda: len(results) >= wanted)


@pytest.mark.parametrize("mode", ["wait", "keep", "abort"])
async def test_under_load_every_engine_loads_once_no_call_is_lost_and_spans_are_true(
    mode: PauseMode, shared: Shared
) -> None:
    async with two_engines(shared) as (caller, a, b), load(caller) as results:
        await more(results)
        for version in (1, 2):
            await update_policy(caller.broker, shared, "m", version, str(version), mode=mode)
            assert (a.version, b.version) == (str(version), str(version))
            await more(results)
    assert a.loads == b.loads == ["1", "2"]
    assert a.sampled_while_loading == b.sampled_while_loading == 0
    assert all(result.error is None for result in results)
    assert (a.aborted + b.aborted > 0) == (mode == "abort")
    spans = [(r.versions, words(r)) for r in results if r.versions is not None]
    assert spans
    assert all(span.min <= min(seen) <= max(seen) <= span.max for span, seen in spans)
    if mode == "wait":
        assert all(len(set(words(r))) == 1 for r in results)
    after = [r.versions for r in results[-5:]]
    assert all(span is not None and span.max == 2 for span in after)


async def test_calls_wait_while_weights_are_loaded_and_go_on_at_once_after(
    shared: Shared,
) -> None:
    async with vllm_server.running() as a, two_gateways(shared, [a]) as caller:
        await caller.ask()
        update = PolicyUpdate(id="u", version=1, path="1", mode="wait")
        await shared.ask("m", update)
        await shared.lead("m", "u", "a gateway elsewhere")
        pools = [pool for each in (caller, *caller.others) for pool in each.gateway.pools.values()]
        await eventually(lambda: all(pool.paused for pool in pools))
        asked = asyncio.create_task(caller.ask())
        chats = len(a.server.seen)
        await asyncio.sleep(0.5)
        assert len(a.server.seen) == chats, "nothing was sent"
        a.weights = a.version = "1"  # by the gateway elsewhere
        await shared.settle("m", update)
        result = await asyncio.wait_for(asked, 5)
    assert result.error is None
    assert a.loads == [], "who does not lead loads nothing"


async def eventually(condition: Callable[[], bool], within_s: float = 20) -> None:
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_an_engine_that_refuses_fails_the_update_with_its_words_and_calls_go_on(
    shared: Shared,
) -> None:
    async with two_engines(shared, b_refuses=True) as (caller, a, b), load(caller) as results:
        with pytest.raises(PolicyUpdateFailed, match=r"version 3 of model 'm'.*no such directory"):
            await update_policy(caller.broker, shared, "m", 3, "3")
        await more(results)
        b.refuses_weights = False
        await update_policy(caller.broker, shared, "m", 3, "3")
        await more(results)
    assert all(result.error is None for result in results)
    assert a.version == b.version == "3"


async def test_an_engine_that_was_started_anew_gets_the_weights_before_it_gets_calls(
    shared: Shared,
) -> None:
    async with two_engines(shared) as (caller, a, b):
        await caller.ask()
        await update_policy(caller.broker, shared, "m", 1, "1")
        await a.server.stop()
        a.restart()
        await a.server.start()
        async with load(caller) as results:
            await eventually(lambda: a.loads == ["1", "1"])
            await more(results, 60)
    assert b.loads == ["1"], "it had them"
    assert a.loads == ["1", "1"], "one gateway loaded them, once"
    assert all(result.error is None for result in results)
    assert all(set(words(result)) == {1} for result in results), "no word of the old weights"
    assert all(result.versions == VersionSpan(min=1, max=1) for result in results)


async def test_an_engine_that_does_not_take_the_weights_again_gets_no_calls_and_it_is_said(
    shared: Shared,
) -> None:
    async with two_engines(shared) as (caller, a, _):
        await caller.ask()
        await update_policy(caller.broker, shared, "m", 1, "1")
        a.restart()
        a.refuses_weights = True
        gateways = [caller.gateway, caller.others[0].gateway]

        def why() -> list[str]:
            return [e.why for g in gateways for e in g.endpoints()["m"] if e.url == a.url]

        async with load(caller) as results:
            await eventually(lambda: any("no such directory" in each for each in why()))
            await more(results, 30)
            a.refuses_weights = False
            await eventually(lambda: a.version == "1")
    assert all(set(words(result)) == {1} for result in results)
    assert all(result.error is None for result in results)


async def test_without_a_gateway_the_update_is_taken_back_and_said(shared: Shared) -> None:
    broker = MemoryBroker()
    with pytest.raises(PolicyUpdateFailed, match="no gateway that serves 'm'"):
        await update_policy(broker, shared, "m", 1, "1", taken_within_s=0.3)
    state = await shared.policy("m")
    assert state is not None
    assert not state.open
    await broker.close()


async def test_versions_must_not_fall_and_one_update_runs_at_a_time(shared: Shared) -> None:
    broker = MemoryBroker()
    await shared.settle("m", PolicyUpdate(id="x", version=5, path="5", mode="keep"))
    with pytest.raises(UsageError, match="at version 5 already"):
        await update_policy(broker, shared, "m", 4, "4")
    await shared.ask("m", PolicyUpdate(id="y", version=6, path="6", mode="keep"))
    with pytest.raises(UsageError, match="version 6 of model 'm' is being loaded"):
        await update_policy(broker, shared, "m", 7, "7")
    await broker.close()


async def test_of_two_updates_at_once_one_is_refused_and_the_other_loaded(shared: Shared) -> None:
    async with vllm_server.running() as a, two_gateways(shared, [a]) as caller:
        said = await asyncio.wait_for(both(caller, shared), 30)
        assert [type(e) for e in said if e is not None] == [UsageError]
        assert len(a.loads) == 1
        assert a.version == a.loads[0]


async def both(caller: Caller, shared: Shared) -> list[BaseException | None]:
    tasks = [
        asyncio.create_task(update_policy(caller.broker, shared, "m", version, str(version)))
        for version in (1, 2)
    ]
    await asyncio.wait(tasks)
    return [task.exception() for task in tasks]


async def test_an_update_that_was_asked_before_there_was_a_gateway_is_taken_by_the_first_one(
    shared: Shared,
) -> None:
    elsewhere = MemoryBroker()
    async with vllm_server.running() as a:
        update = asyncio.create_task(update_policy(elsewhere, shared, "m", 1, "1"))
        await eventually_open(shared)
        async with two_gateways(shared, [a]) as caller:
            await asyncio.wait_for(update, 30)
            result = await caller.ask()
        assert a.loads == ["1"]
        async with two_gateways(shared, [a]) as caller:  # later than the update: nothing to do
            result = await caller.ask()
        assert a.loads == ["1"]
    assert result.versions is not None
    assert (result.versions.min, result.versions.max) == (1, 1)
    await elsewhere.close()


async def eventually_open(shared: Shared) -> None:
    async with asyncio.timeout(20):
        while (state := await shared.policy("m")) is None or not state.open:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_when_the_leader_is_killed_another_begins_anew_and_nothing_is_lost() -> None:
    now = 0.0
    shared = MemoryShared(lambda: now)
    async with vllm_server.running(words=40) as a, two_gateways(shared, [a]) as caller:
        asked = asyncio.create_task(caller.ask())
        await eventually(lambda: a.sampled > 0)
        await shared.ask("m", PolicyUpdate(id="u", version=1, path="1", mode="keep"))
        await shared.lead("m", "u", "a gateway that is killed")
        await a._pause("mode=keep")  # as far as it came
        pools = [pool for each in (caller, *caller.others) for pool in each.gateway.pools.values()]
        await eventually(lambda: all(pool.paused for pool in pools))
        assert a.loads == []
        now = 3 * LEAD_S + 1
        result = await asyncio.wait_for(asked, 20)
        await eventually(lambda: not any(pool.paused for pool in pools))
    assert (a.loads, a.version) == (["1"], "1")
    assert result.error is None
    assert set(words(result)) == {0, 1}, "frozen under the old weights, ended under the new ones"


async def test_two_gateways_keep_a_limit_together(shared: Shared) -> None:
    name = f"limited-{next(itertools.count(id(shared)))}"
    async with vllm_server.running(words=1, word_s=0.0) as a:
        model = config(a.url, name=name, api="vllm", requests_per_minute=600)
        async with (
            serving(model, shared=shared) as caller,
            serving(model, shared=shared, beside=caller),
        ):
            started = asyncio.get_running_loop().time()
            async with asyncio.TaskGroup() as group:
                for n in range(50):
                    group.create_task(caller.ask(model=name, rollout=f"run.g/{n}/0"))
            lasted_s = asyncio.get_running_loop().time() - started
    assert lasted_s >= 2.8, "20 at once, 30 more at 10 a second"
    assert lasted_s < 6
