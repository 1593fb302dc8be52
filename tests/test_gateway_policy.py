"""Weight updates of vLLM servers, on a fake that answers as 0.32 does."""

import asyncio

import pytest

from broker.shared.base import PolicyUpdateFailed
from tests.support import provider
from tests.support.gateway import KEY, config
from workers.model_gateway.policy import update_policy

STEPS = ["/pause", "/collective_rpc", "/reset_prefix_cache", "/update_weight_version", "/resume"]
DONE = provider.answers({"success": True})


def paths(server: provider.FakeProvider) -> list[str]:
    return [seen.path.partition("?")[0] for seen in server.seen]


async def test_every_endpoint_is_paused_loaded_flushed_named_and_resumed_in_this_order() -> None:
    async with provider.running(DONE) as a, provider.running(DONE) as b:
        await update_policy(config(a.url, b.url), version=7, path="/weights/7", mode="wait")
        assert paths(a) == paths(b) == STEPS
        pause, load, _, name, _ = a.seen
    assert pause.path == "/pause?mode=wait"
    assert load.json == {"method": "reload_weights", "kwargs": {"weights_path": "/weights/7"}}
    assert name.json == {"new_version": "7"}


@pytest.mark.parametrize("before", ["", "/weights/6"])
@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (provider.error(500, f"no such directory, key {KEY.reveal()}"), "no such directory"),
        (provider.resets, "without an answer"),
    ],
)
async def test_an_endpoint_that_cannot_load_gets_its_old_weights_and_keeps_its_version(
    wrong: provider.Behaviour, says: str, before: str
) -> None:
    async with provider.running(DONE, [DONE, wrong]) as bad, provider.running(DONE) as good:
        bad.other["/v1/models"] = provider.answers({"data": [{"id": "m", "root": "/weights/base"}]})
        with pytest.raises(PolicyUpdateFailed, match=says) as caught:
            await update_policy(
                config(bad.url, good.url), version=7, path="/weights/7", before=before
            )
        again = bad.seen[-2].json["kwargs"]["weights_path"]
        assert again == (before or "/weights/base")
        assert paths(bad)[-1] == "/resume"
        assert "/update_weight_version" not in paths(bad)
        assert paths(good) == STEPS, "one failure does not stop another endpoint in its middle"
    assert KEY.reveal() not in str(caught.value)
    assert "1 of 2 endpoints have the new weights" in str(caught.value)


async def test_an_endpoint_whose_server_hangs_up_after_an_error_gets_its_old_weights_too() -> None:
    """So does vLLM's after a failed load; without weights its engine dies of the next request."""

    async def refuses(request: provider.Seen, writer: asyncio.StreamWriter) -> None:
        await provider.error(500, "no such directory")(request, writer)
        await asyncio.sleep(0.1)
        writer.close()

    async with provider.running(DONE, [DONE, refuses]) as server:
        with pytest.raises(PolicyUpdateFailed, match="no such directory"):
            await update_policy(config(server.url), version=7, path="/7", before="/6")
        assert [seen.json["kwargs"]["weights_path"] for seen in server.seen[1:3]] == ["/7", "/6"]
        assert paths(server)[3:] == ["/resume"]


async def test_an_endpoint_that_can_load_nothing_names_no_version_and_is_to_be_restarted() -> None:
    gone = provider.error(500, "no such directory")
    async with provider.running(DONE, [DONE, gone, gone]) as server:
        with pytest.raises(PolicyUpdateFailed, match="restart that server"):
            await update_policy(config(server.url), version=7, path="/7", before="/6")
        assert server.seen[-2].json == {"new_version": "unknown"}
        assert paths(server)[-1] == "/resume"


async def test_a_prefix_cache_that_was_kept_is_a_failure_though_its_status_is_200() -> None:
    kept = provider.answers({"success": False})
    async with provider.running(DONE, [DONE, DONE, kept]) as server:
        with pytest.raises(PolicyUpdateFailed, match="old prefixes"):
            await update_policy(config(server.url), version=7, path="/weights/7")
        assert server.seen[-2].json == {"new_version": "unknown"}, "neither 7 nor what was before"
        assert paths(server)[-1] == "/resume"


async def test_a_server_without_dev_mode_is_told_from_others() -> None:
    async with provider.running(provider.error(404, "Not Found")) as server:
        with pytest.raises(PolicyUpdateFailed, match="VLLM_SERVER_DEV_MODE"):
            await update_policy(config(server.url), version=7, path="/weights/7")
