"""Processes of a test that end without a word: what they held goes to others at once."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any, cast

from broker.errors import BrokerError, JournalUnavailable
from broker.journal.base import Journal
from broker.names import new_worker_id
from broker.serve import serve
from tests.support.rig import Rig
from workers.inbox import Inbox
from workers.verifier.worker import VerifierWorker


class Mortal:
    """A process's way to the journal: it ends with the process."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self.dead = False
        self.leases: set[str] = set()

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        operation = getattr(self._journal, name)

        async def ask(*args: Any, **kwargs: Any) -> Any:
            await asyncio.sleep(0)
            if self.dead and name == "listen":
                return  # it is no operation, and never says that the store is away
            if self.dead:
                raise JournalUnavailable("this process is dead")
            if name == "renew_lease":
                self.leases.add(args[0])
            return await operation(*args, **kwargs)

        return ask


@asynccontextmanager
async def doomed_verifier(rig: Rig, dies_after: str = "") -> AsyncIterator[asyncio.Event]:
    """A verifier that is killed at the context's end, or hears nothing any more after it has first
    asked the journal this; the event says that it has."""
    broker, journal, asked = rig.node.connect(), Mortal(rig.journal), asyncio.Event()

    if dies_after:
        operation = getattr(journal, dies_after)

        async def last(*args: Any, **kwargs: Any) -> Any:
            await operation(*args, **kwargs)
            asked.set()
            await asyncio.Event().wait()

        setattr(journal, dies_after, last)

    async def run(serving: asyncio.Event) -> None:
        async with AsyncExitStack() as stack:
            inbox = Inbox(broker, cast(Journal, journal), new_worker_id("verifier"), sweep_s=1.0)
            environments = {rig.spec.name: rig.spec}
            worker = VerifierWorker(broker, cast(Journal, journal), inbox, environments)
            await stack.enter_async_context(inbox.open())
            await serve(broker, worker.sources(), stop=asyncio.Event(), serving=serving)

    serving = asyncio.Event()
    task = asyncio.create_task(run(serving))
    await serving.wait()
    yield asked
    journal.dead = True
    for lease in journal.leases:
        await rig.journal.end_lease(lease)
    await broker.close()
    task.cancel()
    with suppress(asyncio.CancelledError, BaseExceptionGroup, BrokerError):  # nobody listens to it
        await task
