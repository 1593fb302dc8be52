"""The core loop's end: what is not done goes back by itself, not with the connection."""

import asyncio

from broker.base import Delivery, Outgoing
from broker.memory import MemoryBroker
from broker.serve import Outcome, Source, serve
from broker.topology import TOOL, tool_queue
from tests.support.hand import Hand


async def test_what_is_not_done_at_the_end_of_the_grace_is_given_back_at_once() -> None:
    broker, other = (node := MemoryBroker()), node.connect()
    queue = tool_queue("env")
    await broker.declare([queue])
    begun, stop, hand = asyncio.Event(), asyncio.Event(), Hand()

    async def never_ends(delivery: Delivery) -> Outcome:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    serving = asyncio.create_task(
        serve(broker, [Source(queue, 1, never_ends, "tool")], stop=stop, grace_s=0.01)
    )
    await broker.publish(Outgoing(exchange=TOOL.name, key="env", body=b"call"))
    await begun.wait()
    stop.set()
    await serving
    async with other.consume(queue.name, 1, hand.take):  # the first connection is still open
        assert (await hand.next()).redelivered
