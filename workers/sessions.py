"""Sticky sessions: where one lives, and whether it still does.

A session is a live object in one tool worker. Its address travels with the rollout; all calls of
the rollout go to that worker's own queue. When the worker has gone the session has gone: the
rollout starts again as a new attempt, for nobody could say what a blank one lacks.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from broker.base import Broker
from broker.errors import Unroutable
from broker.messages import Packed
from broker.topology import session_queue

T = TypeVar("T")

#: Attempts of one rollout; when the last one loses its session too, the rollout has failed.
MAX_ATTEMPTS: Final = 3
#: An owner that lost its connection has this long to be back before it counts as gone.
GRACE_S: Final = 8.0
_LOOK_S: Final = 1.0


class Address(Packed, frozen=True, kw_only=True):
    """Where a session lives."""

    worker: str
    boot: str
    """The worker's start: a worker of the same name that started again has no session of ours."""
    session: str
    lease_s: float
    """It is closed when no call has come for so long."""


class SessionGone(Exception):
    """The rollout's session has ended, and its state with it: only a new attempt helps."""


def session_key(address: Address) -> str:
    """Routing key of calls to the session's worker."""
    return f"session.{address.worker}"


async def while_alive(
    broker: Broker, address: Address, work: Coroutine[Any, Any, T], *, grace_s: float = GRACE_S
) -> T:
    """Await `work`, a call to the session's worker. Raises SessionGone when that has gone."""
    working = asyncio.ensure_future(work)
    watching = asyncio.create_task(_until_gone(broker, address, grace_s))
    both = {working, watching}
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        watching.result()
    except Unroutable:
        pass
    finally:
        for task in both:
            task.cancel()
        await asyncio.wait(both)
        for task in both:
            task.cancelled() or task.exception()
    raise SessionGone(f"the tool worker {address.worker} that kept the session has gone")


async def _until_gone(broker: Broker, address: Address, grace_s: float) -> None:
    queue = session_queue(address.worker).name
    clock = asyncio.get_running_loop().time
    seen = clock()
    while clock() - seen <= grace_s:
        await asyncio.sleep(_LOOK_S)  # a queue that is gone already takes no call
        depth = await broker.depth(queue)
        if depth is None:
            return
        if depth.consumers:
            seen = clock()
