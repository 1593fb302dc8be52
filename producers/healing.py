"""A run that stands still though nothing is queued has lost messages: publish them again.

Durable queues of a healthy broker lose nothing. But queues are purged by hand, a disk is restored
from yesterday, and RabbitMQ 3.10 forgets what it confirmed for a quorum queue that was declared in
the last half second before a kill -9. A producer that waits for its rows notices: no row became
durable for a while, and no queue of the run holds anything ready. Publishing again is always
safe: what still runs somewhere is recognised by its owner, what is committed by the journal.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from broker.base import Broker
from broker.topology import QueueSpec, dead_queue, kept_queue
from producers.publisher import Instance, Publisher

log = logging.getLogger(__name__)

#: How long a run may stand still before it is looked at; doubled each time that it did not help.
STALL_S: Final = 30.0
MAX_STALL_S: Final = 600.0


async def heal(
    broker: Broker,
    publisher: Publisher,
    queues: Sequence[QueueSpec],
    instances: Callable[[], Iterable[Instance]],
    safe: Callable[[], int],
    *,
    stall_s: float = STALL_S,
) -> None:
    """Watch a run until cancelled. `instances` are all of the run; `safe` counts durable rows."""
    wait_s = stall_s
    while True:
        before = safe()
        await asyncio.sleep(wait_s)
        if safe() != before or not await _are_empty(broker, queues):
            wait_s = stall_s
            continue
        again = await publisher.publish_again(instances())
        if again:
            log.warning("run stood still: published again", extra={"instances": again})
        wait_s = min(wait_s * 2, MAX_STALL_S)


async def _are_empty(broker: Broker, queues: Sequence[QueueSpec]) -> bool:
    others = {dead_queue().name, kept_queue().name}  # what lies there does not move the run
    for queue in queues:
        if queue.name in others:
            continue
        depth = await broker.depth(queue.name)
        if depth is not None and depth.ready:
            return False
    return True
