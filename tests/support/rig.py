"""A small embedded Warren for tests: real broker, real journal, real agent and verifier workers.

Models and tools are plain functions that go through the real Executor, so that claims, replies
and first-wins hold. `Rig.results` collects what sinks would get.
"""

import asyncio
import inspect
import json
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from broker import codec
from broker.base import Delivery
from broker.journal.memory import MemoryJournal, MemoryRuns
from broker.memory import MemoryBroker
from broker.messages import (
    Failure,
    Limits,
    ModelCall,
    ModelResult,
    Result,
    Task,
    ToolCall,
    ToolResult,
    Trajectory,
    Usage,
)
from broker.names import new_worker_id
from broker.results import read_result
from broker.serve import Ack, Outcome, Source, serve
from broker.shared.memory import MemoryShared
from broker.topology import (
    LANES,
    ladder_queues,
    model_queue,
    run_results_queue,
    task_queue,
    tool_queue,
)
from producers.publisher import task_message
from workers.agent.worker import AgentSettings, AgentWorker
from workers.executor import Done, Executor
from workers.inbox import Inbox
from workers.spec import EnvironmentSpec, Item
from workers.verifier.worker import VerifierWorker

Model = Callable[[list[Item], ModelCall], Any]
"""Items in, output items (or a ModelResult, or text) out; may be async."""
Tool = Callable[[dict[str, Any]], Any]


def message(text: str) -> Item:
    """An assistant message."""
    return {
        "type": "message",
        "role": "assistant",
        "content": [{"type": "output_text", "text": text}],
    }


def tool_call(name: str, call_id: str = "c1", **arguments: Any) -> Item:
    """A function call by the model."""
    return {
        "type": "function_call",
        "name": name,
        "call_id": call_id,
        "arguments": json.dumps(arguments),
    }


class Rig:
    """Everything that one test needs; processes are simulated by connections and stop events."""

    def __init__(
        self, spec: EnvironmentSpec, model: Model, tools: Mapping[str, Tool] | None = None
    ) -> None:
        self.spec = spec
        self.model = model
        self.tools = dict(tools or {})
        self.node = MemoryBroker()
        self.journal = MemoryJournal()
        self.runs = MemoryRuns()
        self.shared = MemoryShared()
        self.results: list[Result] = []
        self.calls: Counter[str] = Counter()
        """How often each call was really executed, by `<rollout>:<path>`."""
        self.executes = True
        """Whether it executes calls itself; else the test has executors of its own."""
        self.executor_lives = False
        """Whether its executor has a lease, so that a store that can tells owners of results."""
        self.sweep_s = 0.1
        """How often owners look for lost replies."""
        self.arrived = asyncio.Condition()
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> "Rig":
        results = run_results_queue("test", "r")
        lanes = [model_queue(lane, "m") for lane in LANES]
        await self.node.declare(
            [results, task_queue("normal", self.spec.name), *lanes, *ladder_queues("task")]
        )
        broker = self.node.connect()
        executor = Executor(broker, self.journal)
        sources = [Source(results, 100, self.hear, None)]
        if self.executes:
            sources += [Source(q, 100, self.model_handler(executor), "model") for q in lanes]
            tools = tool_queue(self.spec.name)
            sources.append(Source(tools, 100, self.tool_handler(executor), "tool"))
        self._stack.push_async_callback(broker.close)
        if self.executor_lives:
            await self._stack.enter_async_context(executor.open())
        await self._stack.enter_async_context(self.process(broker, sources))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    @asynccontextmanager
    async def process(
        self, broker: MemoryBroker, sources: Sequence[Source]
    ) -> AsyncGenerator[asyncio.Event, None]:
        """Serve these sources until the block ends, as a process of its own would."""
        stop = asyncio.Event()
        task = asyncio.create_task(serve(broker, sources, stop=stop, grace_s=0.1))
        try:
            yield stop
        finally:
            stop.set()
            await task

    @asynccontextmanager
    async def agent(self, **settings: Any) -> AsyncGenerator[AgentWorker, None]:
        """A living agent worker."""
        broker = self.node.connect()
        inbox = Inbox(broker, self.journal, new_worker_id("agent"), sweep_s=self.sweep_s)
        worker = AgentWorker(
            broker,
            self.journal,
            self.runs,
            inbox,
            {self.spec.name: self.spec},
            AgentSettings(**settings),
            self.shared,
        )
        async with inbox.open(), worker.open(), self.process(broker, worker.sources()):
            yield worker
        await broker.close()

    @asynccontextmanager
    async def verifier(self) -> AsyncGenerator[VerifierWorker, None]:
        """A living verifier worker."""
        broker = self.node.connect()
        inbox = Inbox(broker, self.journal, new_worker_id("verifier"), sweep_s=self.sweep_s)
        worker = VerifierWorker(broker, self.journal, inbox, {self.spec.name: self.spec})
        async with inbox.open(), self.process(broker, worker.sources()):
            yield worker
        await broker.close()

    async def submit(self, *indices: int, **changes: Any) -> None:
        """Publish tasks."""
        for index in indices:
            await self.node.publish(task_message(self.task(index, **changes)))

    def task(self, index: int = 0, **changes: Any) -> Task:
        """A task of this rig's environment."""
        row = {"responses_create_params": {"input": f"question {index}"}, "index": index}
        fields: dict[str, Any] = {
            "run": "r",
            "generation": "g",
            "task_index": index,
            "repeat": 0,
            "environment": self.spec.name,
            "model": "m",
            "row": json.dumps(row).encode(),
            "limits": Limits(max_steps=10, timeout_s=20.0, call_timeout_s=10.0),
            "audiences": ("test",),
            "enqueued_at": time.time(),
        }
        return Task(**(fields | changes))

    async def wait(self, count: int, timeout_s: float = 10.0) -> list[Result]:
        """The first `count` results."""
        async with asyncio.timeout(timeout_s), self.arrived:
            await self.arrived.wait_for(lambda: len(self.results) >= count)
        return self.results

    async def hear(self, delivery: Delivery) -> Outcome:
        """Take a result."""
        self.results.append(read_result(delivery.body, delivery.kind))
        async with self.arrived:
            self.arrived.notify_all()
        return Ack()

    def model_handler(self, executor: Executor) -> Callable[[Delivery], Any]:
        """Answers model calls through this executor."""

        async def handle(delivery: Delivery) -> Outcome:
            call = codec.decode(ModelCall, delivery.body, delivery.kind)

            async def work(_: object) -> Done:
                self.calls[f"{call.rollout}:{call.path}"] += 1
                items = [codec.unpack(item) for item in call.input]
                return Done(codec.pack(_as_result(await _maybe(self.model(items, call)))))

            return await executor.execute(call, work)

        return handle

    def tool_handler(self, executor: Executor) -> Callable[[Delivery], Any]:
        """Runs tools through this executor."""

        async def handle(delivery: Delivery) -> Outcome:
            call = codec.decode(ToolCall, delivery.body, delivery.kind)

            async def work(_: object) -> Done:
                self.calls[f"{call.rollout}:{call.path}"] += 1
                return Done(codec.pack(await self._run_tool(call)))

            return await executor.execute(call, work)

        return handle

    async def _run_tool(self, call: ToolCall) -> ToolResult:
        tool = self.tools.get(call.name)
        if tool is None:
            failure = Failure(kind="tool", message=f"unknown tool {call.name}")
            return ToolResult(output="unknown tool", error=failure)
        return ToolResult(output=str(await _maybe(tool(json.loads(call.arguments)))))


async def _maybe(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


def _as_result(answer: Any) -> ModelResult:
    if isinstance(answer, ModelResult):
        return answer
    items = [message(answer)] if isinstance(answer, str) else list(answer)
    calls = any(item["type"] == "function_call" for item in items)
    return ModelResult(
        items=codec.pack(items),
        finish_reason="tool_calls" if calls else "stop",
        usage=Usage(prompt_tokens=10, generated_tokens=5),
        model="m",
    )


def trajectory_of(result: Result) -> Trajectory:
    """The trajectory inside a result."""
    return codec.read(Trajectory, result.trajectory)
