"""What only RabbitMQ can do to us: cuts at any byte, dead channels, silence."""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from typing import Any

import aio_pika
import pytest

from broker import topology
from broker.amqp_address import parse_urls
from broker.amqp_publisher import WINDOW
from broker.base import AGAIN_HEADER, Broker, Outgoing
from broker.errors import BrokerClosed, BrokerError, BrokerLost, Unroutable
from broker.rabbitmq import RabbitBroker
from broker.topology import QueueSpec
from tests.conftest import Names
from tests.support.hand import Hand, until
from tests.support.proxy import Proxy, proxy_to
from tests.support.queues import everything_in, publish_all, to
from tests.support.senders import Posting


@pytest.fixture
def url(rabbitmq: Any) -> str:
    text: str = rabbitmq.url
    return text


@pytest.fixture
async def proxy(url: str) -> AsyncIterator[Proxy]:
    first = parse_urls(url)[0]
    async with proxy_to(str(first.host), int(first.port or 5672)) as proxy:
        yield proxy


@pytest.fixture
async def direct(url: str) -> AsyncIterator[RabbitBroker]:
    broker = await RabbitBroker.connect(url)
    yield broker
    await broker.close()


@pytest.fixture
async def proxied(url: str, proxy: Proxy) -> AsyncIterator[RabbitBroker]:
    broker = await RabbitBroker.connect(proxy.url(url))
    yield broker
    proxy.resume()
    await broker.close()


@pytest.fixture
async def queue(direct: RabbitBroker, fresh_names: Names) -> QueueSpec:
    queue = topology.verify_queue(fresh_names.environment)
    await direct.declare([queue])
    return queue


@pytest.mark.parametrize("step", [197, 1_013, 4_099])
async def test_publishing_through_cuts_after_every_k_bytes_loses_nothing(
    proxy: Proxy, direct: RabbitBroker, url: str, queue: QueueSpec, step: int
) -> None:
    bodies = [b"%d-" % i + bytes(100) for i in range(200)]
    broker = await RabbitBroker.connect(proxy.url(url))
    proxy.cut_after_bytes, proxy.more_bytes_each_time = 600, step
    proxy.cut()
    await publish_all(broker, queue, bodies)
    assert broker.reconnects > 3
    await broker.close()
    await everything_in(direct, queue, set(bodies))


async def test_a_confirm_that_is_lost_makes_us_publish_again_and_say_so(
    proxy: Proxy, proxied: RabbitBroker, direct: RabbitBroker, queue: QueueSpec
) -> None:
    proxy.lose_next_answer()
    await proxied.publish(to(queue, b"sure"))
    assert proxied.reconnects > 0
    hand = Hand()
    async with direct.consume(queue.name, 10, hand.take):
        first, second = await hand.next(), await hand.next()
        assert (first.body, first.redelivered, first.headers) == (b"sure", False, {})
        assert (second.body, second.redelivered) == (b"sure", False)
        assert second.headers == {AGAIN_HEADER: 1}
        first.ack()
        second.ack()


async def test_publishes_that_are_cancelled_at_random_never_get_another_ones_confirm(
    proxy: Proxy, proxied: RabbitBroker, direct: RabbitBroker, queue: QueueSpec
) -> None:
    dice = random.Random(7)
    sure: set[bytes] = set()

    async def one(body: bytes) -> None:
        try:
            async with asyncio.timeout(dice.choice([0.0, 0.001, 0.005, 5.0])):
                await proxied.publish(to(queue, body))
            sure.add(body)
        except TimeoutError:
            pass

    async def unroutable() -> None:
        with pytest.raises(Unroutable):
            await proxied.publish(Outgoing(topology.VERIFY.name, "nobody", b"x"))

    for round_ in range(6):
        async with asyncio.TaskGroup() as group:
            for i in range(100):
                group.create_task(one(b"%d.%d" % (round_, i)))
            group.create_task(unroutable())
            if round_ % 2:
                group.create_task(asyncio.to_thread(lambda: None)).add_done_callback(
                    lambda _: proxy.cut()
                )
    await everything_in(direct, queue, sure)


async def test_a_stalled_connection_is_given_up_and_replaced(
    proxy: Proxy, url: str, queue: QueueSpec
) -> None:
    broker = await RabbitBroker.connect(proxy.url(url), heartbeat_s=1)
    proxy.stall()
    publishing = asyncio.create_task(broker.publish(to(queue)))
    await until(_returns(lambda: not broker.connected))
    proxy.cut()
    proxy.resume()
    await publishing
    assert broker.connected
    await broker.close()


async def test_closing_takes_less_than_a_second_even_when_nothing_answers(
    proxy: Proxy, url: str, queue: QueueSpec
) -> None:
    broker = await RabbitBroker.connect(proxy.url(url))
    others = asyncio.all_tasks()
    proxy.stall()
    publishing = asyncio.create_task(broker.publish(to(queue)))
    await asyncio.sleep(0)
    began = time.monotonic()
    await broker.close()
    assert time.monotonic() - began < 1.0
    with pytest.raises(BrokerError):
        await publishing
    assert asyncio.all_tasks() <= others


async def test_a_broker_that_is_away_is_waited_for_longer_than_for_a_confirmation(
    proxy: Proxy, url: str, queue: QueueSpec
) -> None:
    broker = await RabbitBroker.connect(proxy.url(url), patience_s=2.0)
    await broker.declare([queue])
    proxy.refuse = True
    proxy.cut()
    waiting = [
        asyncio.create_task(broker.publish(to(queue))),
        asyncio.create_task(broker.depth(queue.name)),
    ]
    done, _ = await asyncio.wait(waiting, timeout=3.0)
    assert not done
    proxy.refuse = False
    async with asyncio.timeout(30):
        await asyncio.wait(waiting)
    assert waiting[0].exception() is None
    assert waiting[1].exception() is None
    await broker.close()


async def test_patience_ends(proxy: Proxy, url: str, queue: QueueSpec) -> None:
    broker = await RabbitBroker.connect(proxy.url(url), patience_s=0.5, outage_s=0.5)
    proxy.refuse = True
    proxy.cut()
    with pytest.raises(BrokerLost):
        await broker.publish(to(queue))
    with pytest.raises(BrokerLost):  # one that could not even be sent
        await broker.publish(to(queue))
    with pytest.raises(BrokerLost):
        await broker.depth(queue.name)
    await broker.close()


async def test_what_a_broker_that_hangs_leaves_undone_is_named(
    proxy: Proxy, url: str, queue: QueueSpec
) -> None:
    broker = await RabbitBroker.connect(proxy.url(url), patience_s=0.5)
    proxy.stall()
    with pytest.raises(BrokerLost, match=f"not confirmed .*{queue.bindings[0].exchange.name}"):
        await broker.publish(to(queue))
    with pytest.raises(BrokerLost, match=f"begin to send from {queue.name}"):
        async with broker.consume(queue.name, 1, Hand().take):
            pass
    await broker.close()


async def test_latency_does_not_bound_throughput(
    proxy: Proxy, proxied: RabbitBroker, queue: QueueSpec
) -> None:
    proxy.delay_s = 0.1
    began = time.monotonic()
    await publish_all(proxied, queue, [b"%d" % i for i in range(500)])
    assert time.monotonic() - began < 5  # one by one it would be 100 s


async def test_a_queue_that_an_operator_deletes_comes_back_with_its_consumer(
    direct: RabbitBroker, proxied: RabbitBroker, queue: QueueSpec
) -> None:
    hand = Hand()
    async with direct.consume(queue.name, 1, hand.take):
        await proxied.delete(queue.name)
        await until(lambda: _exists(proxied, queue), deadline_s=10)
        await proxied.publish(to(queue, b"again"))
        assert await hand.next_bodies(1) == [b"again"]


async def test_a_queue_that_lost_its_binding_is_bound_again_by_whoever_publishes(
    direct: RabbitBroker, url: str, queue: QueueSpec
) -> None:
    binding = queue.bindings[0]
    connection = await aio_pika.connect(url)
    async with connection:
        channel = await connection.channel()
        await (await channel.get_queue(queue.name)).unbind(binding.exchange.name, binding.key)
    stranger = await RabbitBroker.connect(url)  # has declared nothing, so it mends nothing
    with pytest.raises(Unroutable):
        await stranger.publish(to(queue))
    await stranger.close()
    await direct.publish(to(queue, b"again"))
    await everything_in(direct, queue, {b"again"})


async def _exists(broker: Broker, queue: QueueSpec) -> bool:
    return (depth := await broker.depth(queue.name)) is not None and depth.consumers == 1


async def test_a_backlog_may_take_longer_than_one_confirmation(
    proxy: Proxy, url: str, queue: QueueSpec
) -> None:
    broker = await RabbitBroker.connect(proxy.url(url), patience_s=3.0)
    await broker.declare([queue])
    proxy.delay_s = 0.3
    await publish_all(broker, queue, [b"%d" % i for i in range(4096)])  # 8 windows, a second each
    await broker.close()


async def test_what_nobody_wants_any_more_is_neither_sent_nor_sent_again(
    proxy: Proxy, proxied: RabbitBroker, direct: RabbitBroker, queue: QueueSpec
) -> None:
    proxy.stall()  # so none is confirmed
    sent = {name: Posting() for name in (b"sent, wanted", b"sent")}
    for name, sender in sent.items():
        proxied.post(to(queue, name), sender)
    await asyncio.sleep(0)  # their bytes are written
    proxy.refuse = True
    proxy.cut()
    await until(_returns(lambda: not proxied.connected))
    late = {name: Posting() for name in (b"late, wanted", b"late")}
    for name, sender in late.items():
        proxied.post(to(queue, name), sender)
    sent[b"sent"].wanted = late[b"late"].wanted = False
    proxy.refuse = False
    proxy.resume()
    assert await sent[b"sent, wanted"].end() is await late[b"late, wanted"].end() is None
    for unwanted in (sent[b"sent"], late[b"late"]):
        assert isinstance(await unwanted.end(), BrokerError)
    hand = Hand()
    async with direct.consume(queue.name, 10, hand.take):
        assert set(await hand.next_bodies(2)) == {b"sent, wanted", b"late, wanted"}
        assert await hand.stays_empty()


async def test_posts_beyond_the_window_wait_for_confirms_before_they_are_sent(
    proxy: Proxy, proxied: RabbitBroker, direct: RabbitBroker, queue: QueueSpec
) -> None:
    proxy.stall()
    senders = [Posting() for _ in range(WINDOW + 100)]
    for n, sender in enumerate(senders):
        proxied.post(to(queue, b"%d" % n), sender)
    await asyncio.sleep(0)  # what may be sent is written
    for sender in senders:
        sender.wanted = False
    proxy.resume()
    ends = [await sender.end() for sender in senders]
    assert ends[:WINDOW] == [None] * WINDOW
    assert all(isinstance(end, BrokerError) for end in ends[WINDOW:])
    hand = Hand()
    async with direct.consume(queue.name, 2 * WINDOW, hand.take):
        assert set(await hand.next_bodies(WINDOW)) == {b"%d" % n for n in range(WINDOW)}
        assert await hand.stays_empty()


async def test_a_post_that_is_not_confirmed_in_time_or_before_the_end_is_told(
    proxy: Proxy, url: str, queue: QueueSpec
) -> None:
    broker = await RabbitBroker.connect(proxy.url(url), patience_s=0.5)
    proxy.stall()
    late, last = Posting(), Posting()
    broker.post(to(queue), late)
    assert isinstance(await late.end(), BrokerLost)
    broker.post(to(queue), last)
    await broker.close()
    assert isinstance(await last.end(), BrokerClosed)
    assert len(late.ends) == len(last.ends) == 1


def _returns(condition: Any) -> Any:
    async def ask() -> bool:
        return bool(condition())

    return ask


async def test_a_burst_of_large_hints_waits_for_room_in_the_socket(
    direct: RabbitBroker, queue: QueueSpec
) -> None:
    bodies = [bytes([n]) * 100_000 for n in range(100)]  # ten times what a socket takes at once
    for body in bodies:
        direct.publish_hint(to(queue, body))
    await everything_in(direct, queue, set(bodies))


async def test_hints_beyond_what_may_wait_are_dropped_which_is_logged_once_with_their_count(
    proxied: RabbitBroker,
    proxy: Proxy,
    queue: QueueSpec,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("broker.amqp_publisher.LATE_HINTS_BYTES", 1_000_000)
    proxy.stall()
    for _ in range(300):
        proxied.publish_hint(to(queue, bytes(100_000)))
        await asyncio.sleep(0)
    proxy.resume()
    hand = Hand()
    async with proxied.consume(queue.name, 300, hand.take):
        while "were dropped" not in caplog.text:
            (await hand.next()).ack()
    assert caplog.text.count("are dropped") == caplog.text.count("were dropped") == 1
