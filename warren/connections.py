"""What every command and worker talks to: broker, journal, run records, by the settings.

Without a broker URL the broker is in memory; without a Redis URL the journal is a SQLite file.
"""

from collections.abc import AsyncGenerator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from broker.base import Broker
from broker.errors import UsageError
from broker.journal.base import Journal
from broker.journal.runs import Runs
from broker.shared.base import Shared
from broker.shared.memory import MemoryShared
from warren.settings import Settings
from workers.model_gateway.config import ModelConfig


@dataclass(frozen=True, slots=True)
class Connections:
    """Open connections of one process."""

    broker: Broker
    journal: Journal
    runs: Runs
    shared: Shared = field(default_factory=MemoryShared)


@asynccontextmanager
async def connect(
    settings: Settings, journal_file: Path | None = None
) -> AsyncGenerator[Connections, None]:
    """Open everything; close it in the other order.

    `journal_file` is where a journal without Redis lives; None forbids it. Raises Unreachable,
    UsageError.
    """
    async with AsyncExitStack() as stack:
        journal, runs = await _stores(settings, journal_file, stack)
        broker = await _broker(settings)
        stack.push_async_callback(broker.close)
        yield Connections(broker, journal, runs, await _shared(settings, stack))


async def _shared(settings: Settings, stack: AsyncExitStack) -> Shared:
    if settings.redis is None:  # embedded: the gateway of this process is the only one
        return MemoryShared()
    from broker.shared.redis import RedisShared

    shared = await RedisShared.connect(settings.redis.reveal())
    stack.push_async_callback(shared.close)
    return shared


async def _broker(settings: Settings) -> Broker:
    if settings.broker is None:
        from broker.memory import MemoryBroker

        return MemoryBroker()
    from broker.rabbitmq import RabbitBroker

    url, declares = settings.broker.reveal(), settings.declare_topology
    return await RabbitBroker.connect(url, declares=declares)


async def _stores(
    settings: Settings, journal_file: Path | None, stack: AsyncExitStack
) -> tuple[Journal, Runs]:
    journal: Journal
    if settings.redis is not None:
        from broker.journal.redis import RedisJournal
        from broker.journal.redis_runs import RedisRuns

        journal = await RedisJournal.connect(settings.redis.reveal())
        stack.push_async_callback(journal.close)
        runs = await RedisRuns.connect(settings.redis.reveal())
        stack.push_async_callback(runs.close)
        return journal, runs
    if journal_file is None:
        raise UsageError("several processes need one journal: give --redis URL (WARREN_REDIS)")
    from broker.journal.sqlite import SqliteJournal, SqliteRuns

    journal = await SqliteJournal.open(journal_file)
    stack.push_async_callback(journal.close)
    return journal, SqliteRuns(journal.database)


async def check_reachable(settings: Settings, models: Iterable[ModelConfig]) -> None:
    """Ask broker, store and model endpoints whether they are there, before anything is written.

    Raises Unreachable: which one, with its URL masked, and what to try.
    """
    if settings.broker is not None:
        await (await _broker(settings)).close()
    async with AsyncExitStack() as stack:
        if settings.redis is not None:
            await _stores(settings, None, stack)
    for model in models:
        from workers.model_gateway.opening import check_endpoint

        await check_endpoint(model)
