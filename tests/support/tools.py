"""A tool worker over the embedded broker and journal, called as an agent would call it."""

import asyncio
import itertools
import json
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from broker import codec
from broker.base import Outgoing
from broker.journal.base import CallRef, Go, Run
from broker.journal.memory import MemoryJournal
from broker.memory import MemoryBroker
from broker.messages import ToolCall, ToolResult
from broker.serve import serve
from broker.topology import TOOL, ladder_queues, tool_queue
from tests.support.calls import tool_call
from warren import Environment
from workers.executor import Executor
from workers.tool.worker import ToolWorker

ROLLOUT = "run.g/0/0"


@dataclass
class ToolBench:
    """Calls tools through queue, journal and worker; the journal's word is the answer."""

    broker: MemoryBroker
    journal: MemoryJournal
    worker: ToolWorker
    environment: str
    epoch: str = ""
    results: dict[str, bytes] = field(default_factory=dict)

    async def call(self, name: str, arguments: object = None, **fields: Any) -> ToolResult:
        """Run one tool; its arguments as an object, or as the text that a model wrote."""
        path = fields.pop("path", f"{uuid.uuid4().hex}")
        await self.publish(name, arguments, path=path, **fields)
        return await self.result(path)

    async def publish(self, name: str, arguments: object = None, **fields: Any) -> None:
        """Publish a call without waiting for its result."""
        text = arguments if isinstance(arguments, str) else json.dumps(arguments or {})
        call = tool_call(
            **{
                "rollout": ROLLOUT,
                "epoch": self.epoch,
                "carrier": uuid.uuid4().hex,
                "request_hash": b"hash",
                "deadline": time.time() + 60,
                "environment": self.environment,
                "name": name,
                "arguments": text,
                **fields,
            }
        )
        body = codec.encode(call)
        kind = codec.kind_of(ToolCall)
        await self.broker.publish(Outgoing(TOOL.name, self.environment, body, kind))

    async def result(self, path: str) -> ToolResult:
        """The journaled result, once it is there."""

        async def there() -> bool:
            return path in (await self.take()).results

        await until(there)
        return codec.read(ToolResult, (await self.take()).results[path].result)

    async def take(self) -> Run:
        """The rollout's record."""
        run = await self.journal.take(ROLLOUT, "owner")
        assert isinstance(run, Run)
        return run

    async def begin_elsewhere(self, path: str, carrier: str) -> None:
        """Another worker begins this call, and dies."""
        ref = CallRef(
            rollout=ROLLOUT,
            epoch=self.epoch,
            path=path,
            carrier=carrier,
            request_hash=b"hash",
            held=0,
        )
        assert isinstance(await self.journal.begin(ref), Go)


async def until(there: Callable[[], Awaitable[bool]], seconds: float = 30) -> None:
    """Wait for a condition that nothing announces; TimeoutError after so long."""
    deadline = time.monotonic() + seconds
    for pause_s in itertools.repeat(0.005):
        if await there():
            return
        if time.monotonic() > deadline:
            raise TimeoutError
        await asyncio.sleep(pause_s)


@asynccontextmanager
async def tool_bench(environment: Environment, **options: Any) -> AsyncGenerator[ToolBench, None]:
    """A worker that serves the environment, until the context ends."""
    broker, journal, stop = MemoryBroker(), MemoryJournal(), asyncio.Event()
    worker = ToolWorker(
        {environment.name: environment.spec()}, Executor(broker, journal), **options
    )
    await broker.declare([tool_queue(environment.name), *ladder_queues("tool")])
    bench = ToolBench(broker, journal, worker, environment.name)
    bench.epoch = (await bench.take()).epoch
    async with asyncio.TaskGroup() as group:
        group.create_task(serve(broker, worker.sources(16), stop=stop, grace_s=0.1))
        try:
            yield bench
        finally:
            stop.set()
    await worker.close()
    await broker.close()
    await journal.close()


__all__ = ["ROLLOUT", "ToolBench", "tool_bench", "until"]
