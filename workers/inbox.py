"""A worker's inbox: its address for replies, its lease, and the sweeps over what it owns.

One per worker process. A dead worker's lease ends, so others may take what it had; a reply that
was lost is found by a sweep, `SWEEP_S` late at worst.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final

from broker import codec
from broker.base import Broker, Delivery
from broker.deadlines import Deadlines, within
from broker.errors import BrokerError, JournalUnavailable, WireError
from broker.journal.base import LEASE_RENEW_S, Journal, Owned, Run, Taken
from broker.messages import Reply
from broker.parting import parting
from broker.topology import inbox, queue_name
from workers.owner import Owner

log = logging.getLogger(__name__)

#: Lost replies are found this late at worst.
SWEEP_S: Final = 20.0
#: After a reconnect, executors too have this long to be back before we look whose calls are lost.
SETTLE_S: Final = 1.0
#: A broker has this long to say how a queue stands.
_DEPTH_S: Final = 2.0


class Inbox:
    """A worker's address: takes replies, keeps the lease, sweeps. One per worker process."""

    def __init__(
        self, broker: Broker, journal: Journal, worker_id: str, *, sweep_s: float = SWEEP_S
    ) -> None:
        self.worker_id = worker_id
        self._broker = broker
        self._journal = journal
        self._sweep_s = sweep_s
        self._owners: dict[str, Owner] = {}
        self._deadlines = Deadlines()
        self._missed = False
        """Whether replies may have been lost since the last sweep."""

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[None, None]:
        """Be reachable while the context is open; leaving it ends the lease."""
        queue = inbox(self.worker_id)
        await self._broker.declare([queue])
        await self._journal.renew_lease(self.worker_id)
        try:
            async with asyncio.TaskGroup() as group:
                lasting = (self._lease, self._sweeps, self._listen)
                chores = [group.create_task(chore()) for chore in lasting]
                async with self._broker.consume(queue.name, None, self._hear):
                    yield
                for task in chores:
                    task.cancel()
        finally:
            await parting(self._journal.end_lease(self.worker_id))
            await parting(self._broker.delete(queue.name))

    async def take(self, key: str, *, uncounted: int = 0) -> Taken:
        """Take a rollout; an owner whose process is gone is not waited for.

        A dead process closes its connection at once, long before its lease runs out.
        """
        while True:
            taken = await self._journal.take(key, self.worker_id, uncounted=uncounted)
            if not isinstance(taken, Owned) or await self._is_consuming(taken.inbox):
                return taken
            await self._journal.end_lease(taken.inbox)

    async def _is_consuming(self, worker_id: str) -> bool:
        depth = await self._broker.depth(queue_name("inbox", worker_id))
        return depth is not None and depth.consumers > 0

    def own(self, key: str, run: Run, *, stateful: bool = False) -> "_Owning":
        """Make calls for a rollout that was taken, while the context is open."""
        owner = Owner(
            self._broker, self._journal, self._deadlines, self.worker_id, key, run, stateful
        )
        return _Owning(self._owners, owner)

    def _hear(self, delivery: Delivery) -> None:
        self._read(delivery.body, delivery.kind)

    async def _listen(self) -> None:
        await self._journal.listen(self.worker_id, self._read, self._miss)

    def _miss(self) -> None:
        self._missed = True

    def _read(self, body: bytes, kind: str | None = None) -> None:
        try:
            reply = codec.decode(Reply, body, kind)
        except WireError as e:
            log.warning("unreadable reply", extra={"error": str(e)})
            return
        owner = self._owners.get(reply.rollout)
        if owner is not None:
            owner.hear(reply)

    async def _lease(self) -> None:
        while True:
            with suppress(JournalUnavailable):  # what needs the journal says so itself
                await self._journal.renew_lease(self.worker_id)
            await asyncio.sleep(LEASE_RENEW_S)

    async def _sweeps(self) -> None:
        seen = self._broker.reconnects
        clock = asyncio.get_running_loop().time
        swept_at = clock()
        while True:
            await asyncio.sleep(min(1.0, self._sweep_s))
            if self._broker.reconnects != seen:
                await asyncio.sleep(SETTLE_S)
                seen = self._broker.reconnects
            owners = self._owners.values()
            if self._missed or clock() - swept_at >= self._sweep_s:
                swept_at, self._missed = clock(), False
                waiting = [o for o in owners if o.waits]
                await self._sweep(waiting, seen, await self._empty_queues(waiting))
            elif due := [o for o in owners if o.is_due(seen)]:
                await self._sweep(due, seen)

    async def _empty_queues(self, owners: Sequence[Owner]) -> frozenset[str]:
        """Of those in which calls may wait, which are empty or gone; none while nobody can say."""
        depths = {}
        for queue in {queue for owner in owners for queue in owner.queues()}:
            with suppress(BrokerError, TimeoutError), within(_DEPTH_S):
                if self._broker.connected:
                    depths[queue] = await self._broker.depth(queue)
        return frozenset(q for q, depth in depths.items() if depth is None or not depth.ready)

    async def _sweep(
        self, owners: Sequence[Owner], reconnects: int, empty: frozenset[str] = frozenset()
    ) -> None:
        async with asyncio.TaskGroup() as group:
            for owner in owners:
                group.create_task(self._sweep_one(owner, reconnects, empty))

    async def _sweep_one(self, owner: Owner, reconnects: int, empty: frozenset[str]) -> None:
        try:
            await owner.sweep(reconnects, empty)
        except (JournalUnavailable, TimeoutError) as e:
            log.warning("sweep postponed", extra={"rollout": owner.key, "error": str(e)})


class _Owning:
    """Replies reach an owner while it is open. (A class: one is opened for every rollout.)"""

    __slots__ = ("_owner", "_owners")

    def __init__(self, owners: dict[str, Owner], owner: Owner) -> None:
        self._owners = owners
        self._owner = owner

    def __enter__(self) -> Owner:
        self._owners[self._owner.key] = self._owner
        return self._owner

    def __exit__(self, *_: object) -> None:
        if self._owners.get(self._owner.key) is self._owner:
            del self._owners[self._owner.key]
