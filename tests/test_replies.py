"""Replies that Redis tells: lost with a connection, refused by it, forged, and never needed."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, cast
from urllib.parse import urlsplit

import pytest
from redis.asyncio import Redis

from broker.journal import redis_link, redis_listener
from broker.journal.base import CallRef, Finished, Overview, Run
from broker.journal.redis import TOLD_BYTES, RedisJournal
from broker.memory import MemoryBroker
from broker.messages import ModelCall, Reply
from broker.names import new_worker_id
from broker.topology import MODEL, model_key, model_queue
from tests.support.hand import PATIENCE_S
from tests.support.journals import eventually, listeners, new_key
from tests.support.ports import free_port
from tests.support.proxy import proxy_to
from tests.support.rig import Rig, trajectory_of
from tests.support.services import Container, RedisProcess
from workers.inbox import Inbox
from workers.owner import Owner, Replaced
from workers.spec import EnvironmentSpec, RewardSpec, Rollout
from workers.waiting import Ask

Killable = RedisProcess | Container

#: An owner that sweeps only when it has a reason.
_NEVER_S = 3600.0
#: A result of which is told only that it is there.
LONG = b"x" * 2 * TOLD_BYTES


async def _one(rollout: Rollout, ctx: object) -> float:
    return 1.0


SPEC = EnvironmentSpec(name="env", rewards=[RewardSpec("one", 1.0, _one)])


class Calling:
    """A rollout whose calls only this test finishes, in an inbox that hears of them."""

    def __init__(self, journal: RedisJournal, owner: Owner, inbox: str) -> None:
        self.inbox = inbox
        self._journal = journal
        self._owner = owner

    def call(self, path: str) -> "asyncio.Task[bytes]":
        """Make a call."""
        ask = Ask(
            path=path,
            request_hash=b"h",
            exchange=MODEL.name,
            key=model_key("normal", "m"),
            message=partial(ModelCall, run="r", environment="e", model="m", input=()),
            timeout_s=_NEVER_S,
            on_timeout=lambda: b"none",
        )
        return asyncio.create_task(self._owner.call(ask))

    async def finish(self, path: str, result: bytes = b"") -> bool:
        """Finish it, as an executor, with its path if nothing else; whether its owner was told."""
        ref = CallRef(
            rollout=self._owner.key,
            epoch=self._owner.run.epoch,
            path=path,
            carrier="c",
            request_hash=b"h",
            held=0,
            executor="x",
        )
        finished = await self._journal.finish(ref, result or path.encode())
        assert isinstance(finished, Finished)
        return finished.told

    def tell(self, path: str) -> None:
        """Its owner hears that a result is there which is too long to be told."""
        reply = Reply(rollout=self._owner.key, epoch=self._owner.run.epoch, path=path)
        self._owner.hear(reply)

    async def is_known(self) -> bool:
        """Whether the journal has the rollout."""
        seen = await self._journal.look(self._owner.key, self._owner.run.epoch, [])
        return isinstance(seen, Overview)

    async def restart(self) -> None:
        """Another attempt begins."""
        await self._journal.restart(self._owner.key, self._owner.run.epoch)


@asynccontextmanager
async def calling(url: str, owners_url: str | None = None) -> AsyncGenerator[Calling, None]:
    """Executors have their journal at `url`, the owner too, if not at an URL of its own."""
    broker, worker = MemoryBroker(), new_worker_id("agent")
    await broker.declare([model_queue("normal", "m")])
    journal = await RedisJournal.connect(url)
    owners = await RedisJournal.connect(owners_url or url, patience_s=10.0)
    inbox = Inbox(broker, owners, worker, sweep_s=_NEVER_S)
    async with inbox.open():
        run = await inbox.take(key := new_key())
        assert isinstance(run, Run)
        with inbox.own(key, run) as owner:
            yield Calling(journal, owner, worker)
    for each in (journal, owners):
        await each.close()
    await broker.close()


async def result(call: "asyncio.Task[bytes]") -> bytes:
    async with asyncio.timeout(PATIENCE_S):
        return await call


@pytest.fixture
async def redis(killable_redis: Killable) -> AsyncIterator[Redis]:
    async with Redis.from_url(killable_redis.url) as redis:
        yield redis


async def test_who_listens_hears_at_once_and_needs_no_sweep(killable_redis: Killable) -> None:
    async with calling(killable_redis.url) as rollout:
        await listeners(killable_redis.url, rollout.inbox)
        calls = {path: rollout.call(path) for path in ("0", "1", "2")}
        for path, call in calls.items():
            assert await rollout.finish(path)
            assert await result(call) == path.encode()


async def test_what_was_told_into_a_dying_connection_is_found_when_it_is_mended(
    killable_redis: Killable,
) -> None:
    port = urlsplit(killable_redis.url).port
    assert port is not None
    async with (
        proxy_to("127.0.0.1", port) as proxy,
        calling(killable_redis.url, proxy.url(killable_redis.url)) as rollout,
    ):
        await listeners(killable_redis.url, rollout.inbox)
        call = rollout.call("0")
        proxy.stall()
        assert await rollout.finish("0")  # Redis has told it, and it never arrives
        proxy.cut()
        proxy.resume()
        assert await result(call) == b"0"
        await listeners(killable_redis.url, rollout.inbox)
        call = rollout.call("1")
        assert await rollout.finish("1")
        assert await result(call) == b"1"


async def test_a_listener_that_was_cut_off_listens_again(
    killable_redis: Killable, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    async with calling(killable_redis.url) as rollout:
        await listeners(killable_redis.url, rollout.inbox)
        for path in ("0", "1"):
            await redis.client_kill_filter(_type="pubsub")
            await listeners(killable_redis.url, rollout.inbox)  # on another connection
            call = rollout.call(path)
            assert await rollout.finish(path)
            assert await result(call) == path.encode()
    assert caplog.text.count("replies through Redis are lost") == 2


async def test_replies_that_no_message_are_dropped(
    killable_redis: Killable, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    async with calling(killable_redis.url) as rollout:
        await listeners(killable_redis.url, rollout.inbox)
        call = rollout.call("0")
        for forged in (b"", b"\xc1", b"\x81", b"\xdd\xff\xff\xff\xff", b"\x80", b"x" * 100_000):
            assert await redis.publish(f"warren:inbox:{rollout.inbox}", forged) == 1
        assert await rollout.finish("0")
        assert await result(call) == b"0"
    assert caplog.text.count("unreadable reply") == 6


async def test_a_long_result_is_read_once_its_owner_is_told_that_it_is_there(
    killable_redis: Killable,
) -> None:
    async with calling(killable_redis.url) as rollout:
        await listeners(killable_redis.url, rollout.inbox)
        calls = {path: rollout.call(path) for path in ("0", "1", "2")}
        for path, call in calls.items():
            assert await rollout.finish(path, LONG + path.encode())
            assert await result(call) == LONG + path.encode()


async def test_a_long_result_whose_owner_does_not_listen_comes_through_the_broker(
    killable_redis: Killable, redis: Redis
) -> None:
    said = "ACL SETUSER mute on >geheim ~warren:* resetchannels +@all"
    await redis.execute_command(*said.split())  # type: ignore[no-untyped-call]
    rig = Rig(SPEC, lambda items, call: LONG.decode())
    rig.sweep_s = _NEVER_S
    rig.executor_lives = True
    mute = killable_redis.url.replace("//", "//mute:geheim@")
    journal = await RedisJournal.connect(mute)
    rig.journal = cast(Any, journal)
    async with rig, rig.agent(), rig.verifier():
        await rig.submit(0)
        (got,) = await rig.wait(1)
    await journal.close()
    assert trajectory_of(got).status == "completed"


async def test_a_long_result_that_is_lost_before_it_is_read_is_a_lost_journal(
    killable_redis: Killable, redis: Redis
) -> None:
    async with calling(killable_redis.url) as rollout:
        await listeners(killable_redis.url, rollout.inbox)
        call = rollout.call("0")
        await redis.flushall()
        rollout.tell("0")  # what was told just before
        await eventually(rollout.is_known)  # its owner has uploaded
        assert await rollout.finish("0", LONG)
        assert await result(call) == LONG


async def test_who_is_told_of_a_long_result_after_the_rollout_was_taken_from_him_stops(
    killable_redis: Killable,
) -> None:
    async with calling(killable_redis.url) as rollout:
        await listeners(killable_redis.url, rollout.inbox)
        call = rollout.call("0")
        await rollout.restart()
        rollout.tell("0")
        with pytest.raises(Replaced):
            await result(call)


async def test_a_user_who_may_not_listen_or_tell_gets_replies_through_the_broker(
    killable_redis: Killable, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    for name, channel in (("mute", "resetchannels"), ("free", "&warren:inbox:*")):
        rights = "+@read +@write +@scripting +@connection +publish +subscribe"
        said = f"ACL SETUSER {name} on >geheim ~warren:* {channel} {rights}"
        await redis.execute_command(*said.split())  # type: ignore[no-untyped-call]
    mute = killable_redis.url.replace("//", "//mute:geheim@")
    rig = Rig(SPEC, lambda items, call: "done")
    rig.sweep_s = _NEVER_S
    rig.executor_lives = True
    journal = await RedisJournal.connect(mute)
    rig.journal = cast(Any, journal)
    async with rig, rig.agent(), rig.verifier():
        await rig.submit(*range(5))
        results = await rig.wait(5)
    await journal.close()
    assert {trajectory_of(r).status for r in results} == {"completed"}
    refused = [r for r in caplog.records if "does not permit" in r.getMessage()]
    assert len(refused) == 2  # the agent's and the verifier's
    assert "&warren:inbox:*" in str(vars(refused[0])["permit_with"])
    async with calling(mute.replace("mute", "free")) as rollout:
        await listeners(killable_redis.url, rollout.inbox)
        call = rollout.call("0")
        assert await rollout.finish("0")
        assert await result(call) == b"0"


async def test_a_listener_asks_a_silent_connection_whether_it_lives_and_leaves_it_if_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (redis_link, redis_listener):
        monkeypatch.setattr(module, "SILENCE_S", 0.2)
    left: asyncio.Queue[bytes] = asyncio.Queue()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        said = b""
        while command := await reader.read(1000):
            said += command
            if b"PING" not in said:
                writer.write(b"+OK\r\n" * command.count(b"*"))
        left.put_nowait(said)
        writer.close()

    missed: asyncio.Queue[None] = asyncio.Queue()
    async with await asyncio.start_server(answer, "127.0.0.1", port := free_port()):
        address = redis_link.Address(f"redis://127.0.0.1:{port}/0")
        listening = asyncio.create_task(
            redis_listener.listen(address, "c", lambda _: None, lambda: missed.put_nowait(None))
        )
        async with asyncio.timeout(PATIENCE_S):
            while b"SUBSCRIBE\r\n$1\r\nc\r\n*1\r\n$4\r\nPING" not in await left.get():
                pass  # a slow machine may not get so far in so little time
            await missed.get()
        listening.cancel()
        await asyncio.wait([listening])


async def test_who_listens_stops_while_redis_is_away(killable_redis: Killable) -> None:
    journal = await RedisJournal.connect(killable_redis.url)
    inbox = Inbox(MemoryBroker(), journal, new_worker_id("agent"))
    async with asyncio.timeout(60):  # for ever, if it waited for a connection
        async with inbox.open():
            await listeners(killable_redis.url, inbox.worker_id)
            await asyncio.to_thread(killable_redis.kill)
        await journal.close()
