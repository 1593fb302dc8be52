"""Who gets a busy endpoint: runs share it, lanes weigh, and the engine hears of lanes."""

import asyncio
from collections import Counter

from broker.topology import Lane
from tests.support import provider
from tests.support.gateway import Caller, config, serving


def who(server: provider.FakeProvider) -> Counter[str]:
    """How many requests each run made, by the word that it said."""
    return Counter(seen.json["messages"][-1]["content"] for seen in server.seen)


async def ask(caller: Caller, n: int, run: str, lane: Lane = "normal") -> None:
    item = {"role": "user", "content": f"{run} {lane}"}
    rollout = f"{run}.g/{n}/0"
    await caller.ask([item], rollout=rollout, run=run, lane=lane, deadline_s=60)


async def test_a_run_with_many_calls_does_not_starve_one_with_few() -> None:
    async with (
        provider.running(provider.says("ok", delay_s=0.02)) as server,
        serving(config(server.url, max_concurrency=4), prefetch=400) as caller,
        asyncio.TaskGroup() as group,
    ):
        for n in range(300):
            group.create_task(ask(caller, n, "big"))
        await server.requests(20)
        began = len(server.seen)
        small = [asyncio.create_task(ask(caller, n, "small")) for n in range(30)]
        await asyncio.wait(small)
        meanwhile = who(server)
        assert meanwhile["big normal"] + meanwhile["small normal"] < 300, "big still waits"
        share = meanwhile["small normal"] / (len(server.seen) - began)
        assert share > 0.4


async def test_lanes_share_a_busy_endpoint_by_their_weights() -> None:
    async with (
        provider.running(provider.says("ok", delay_s=0.02)) as server,
        serving(config(server.url, max_concurrency=4), prefetch=800) as caller,
        asyncio.TaskGroup() as group,
    ):
        lanes: tuple[Lane, ...] = ("bulk", "normal", "resume")
        for lane in lanes:
            for n in range(160):
                group.create_task(ask(caller, n, f"run-{lane}", lane))
        await server.requests(60)
        server.seen.clear()
        await server.requests(130)
        seen = who(server)
    by_lane = [seen[f"run-{lane} {lane}"] for lane in lanes]
    assert by_lane[0] >= 5, "bulk is never starved"
    assert by_lane[0] * 2.5 < by_lane[1] < by_lane[2]


async def test_vllm_hears_the_lane_as_priority() -> None:
    async with provider.running() as server, serving(config(server.url, api="vllm")) as caller:
        for lane in ("resume", "normal", "bulk"):
            await ask(caller, 0, "run", lane)
    assert [seen.json.get("priority") for seen in server.seen] == [-1, None, 1]
