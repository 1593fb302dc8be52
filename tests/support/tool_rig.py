"""The embedded rig with real tool workers, several if a test wants to lose one."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from broker.serve import Source
from broker.topology import LANES, ladder_queues, model_queue, session_queue
from tests.support.rig import Rig
from workers.executor import Executor
from workers.spec import EnvironmentSpec
from workers.tool.worker import ToolWorker


class ToolRig(Rig):
    """Its tools run in real tool workers."""

    def __init__(self, spec: EnvironmentSpec, model: Any) -> None:
        super().__init__(spec, model)
        self.executes = False

    async def __aenter__(self) -> "ToolRig":
        await super().__aenter__()
        broker = self.node.connect()
        handle = self.model_handler(Executor(broker, self.journal))
        sources = [Source(model_queue(lane, "m"), 100, handle, "model") for lane in LANES]
        self._stack.push_async_callback(broker.close)
        await self._stack.enter_async_context(self.process(broker, sources))
        return self

    @asynccontextmanager
    async def tool_worker(self) -> AsyncGenerator[ToolWorker, None]:
        """A tool worker; leaving the context stops it, and gives back what it had in hand."""
        broker = self.node.connect()
        executor = Executor(broker, self.journal)
        worker = ToolWorker({self.spec.name: self.spec}, executor)
        await broker.declare(ladder_queues("tool"))
        async with executor.open(), self.process(broker, worker.sources(16)):
            yield worker
        await self.node.delete(session_queue(worker.sessions.worker_id).name)
        await worker.close()
        await broker.close()


@asynccontextmanager
async def whole_rig(spec: EnvironmentSpec, model: Any) -> AsyncGenerator[ToolRig, None]:
    """The rig with one worker of each kind."""
    async with ToolRig(spec, model) as rig, rig.tool_worker(), rig.agent(), rig.verifier():
        yield rig
