"""What an agent works with: `ctx.model`, `ctx.tool`, `ctx.gather`, and time and chance that replay.

Agent code must be deterministic given its results, because after a crash it runs again from the
start with the finished calls answered from the journal. Everything random or timed comes from the
context; each call has a path that depends on the code's structure only, never on who was faster.
"""

import asyncio
import functools
import json
import random
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from broker.messages import Failure, ToolResult, Usage
from broker.trajectory import read_items
from workers.agent.calls import CallMaker
from workers.agent.conversation import Conversation
from workers.limited import without_exit
from workers.spec import Item, message_text

T = TypeVar("T")


class ModelFailed(Exception):
    """The model could not answer; uncaught, it ends the rollout as failed with this reason."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


@dataclass(frozen=True, slots=True)
class ModelReply:
    """What a model answered."""

    items: Sequence[Item]
    """Responses output items: messages, tool calls, reasoning."""
    finish_reason: str
    usage: Usage

    @property
    def text(self) -> str:
        """The text of all its messages."""
        return "".join(message_text(i) for i in self.items if i.get("type") == "message")

    @property
    def tool_calls(self) -> list[Item]:
        """Its tool calls, in its order."""
        return [i for i in self.items if i.get("type") == "function_call"]

    @property
    def truncated(self) -> bool:
        """Whether it was cut by a length limit; the rollout can't usefully go on."""
        return self.finish_reason in ("length", "context_overflow")


@dataclass(frozen=True, slots=True)
class ToolReply:
    """What a tool answered."""

    call_id: str
    output: str
    error: Failure | None

    @property
    def item(self) -> Item:
        """As the model reads it."""
        return {
            "type": "function_call_output",
            "call_id": self.call_id,
            "output": self.output,
        }


@dataclass(frozen=True, slots=True)
class AgentTask:
    """The task as a custom agent sees it."""

    rollout_id: str
    row: Mapping[str, Any]
    """The dataset's row, every key of it."""
    prompt: Sequence[Item]
    """System prompt, examples and the task's items: what the default agent starts from."""
    offered: bytes = b""
    """Packed list of the tool definitions offered to the policy model."""

    @property
    def tools(self) -> Sequence[Item]:
        """Tool definitions offered to the policy model."""
        return read_items(self.offered)


class Context:
    """One branch of a rollout; the agent gets the root, `gather` makes more."""

    def __init__(self, calls: CallMaker, task: AgentTask, prefix: str = "") -> None:
        self.task = task
        self.conversation = Conversation(task.prompt)
        """The main conversation: `ctx.model()` continues it."""
        self._calls = calls
        self._prefix = prefix
        self._next = 0
        self._step = "start"
        self._tools_called = 0

    @functools.cached_property
    def random(self) -> random.Random:
        """Seeded by rollout, attempt and branch, so that a replay draws the same."""
        return random.Random(f"{self.task.rollout_id}/{self._calls.attempt}/{self._prefix}")

    async def model(
        self,
        conversation: Conversation | Sequence[Item] | None = None,
        *,
        model: str | None = None,
        tools: Sequence[Item] | None = None,
        **options: Any,
    ) -> ModelReply:
        """Ask a model to continue a conversation (default: the main one, the policy model).

        The answer's items are appended to the conversation. `options` are further fields of a
        Responses request (temperature, tool_choice, ...). Raises ModelFailed.
        """
        if conversation is None:
            conversation = self.conversation
        elif not isinstance(conversation, Conversation):
            conversation = Conversation(conversation)
        self._step = path = self._claim()
        self._tools_called = 0
        result, items = await self._calls.model(path, conversation, model, tools, options)
        if result.error is not None:
            raise ModelFailed(result.error)
        return ModelReply(items, result.finish_reason, result.usage)

    async def tool(
        self, name: str, arguments: Mapping[str, Any] | str, *, call_id: str | None = None
    ) -> ToolReply:
        """Run one of the environment's tools. Its failures come back as its output."""
        path = f"{self._prefix}{self._step}.tool.{self._tools_called}"
        self._tools_called += 1
        call_id = call_id or f"call_{path}"
        text = arguments if isinstance(arguments, str) else json.dumps(arguments)
        result = await self._calls.tool(path, name, call_id, text)
        return ToolReply(call_id, result.output, result.error)

    async def run_tools(self, reply: ModelReply) -> list[ToolReply]:
        """Run the tool calls of a reply at once (one by one where the environment has state)."""
        calls = reply.tool_calls
        if len(calls) == 1:  # mostly: it needs no task of its own
            return [await self._run(calls[0])]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._run(call)) for call in calls]
        return [task.result() for task in tasks]

    def _run(self, call: Item) -> Coroutine[Any, Any, ToolReply]:
        call_id = str(call.get("call_id", "")) or None
        return self.tool(str(call.get("name", "")), _arguments(call), call_id=call_id)

    async def gather(self, *branches: Callable[["Context"], Awaitable[T]]) -> list[T]:
        """Run branches concurrently, each with a context of its own; results in their order."""
        place = self._claim()
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(
                    _await(branch(Context(self._calls, self.task, f"{self._prefix_of(place)}{n}.")))
                )
                for n, branch in enumerate(branches)
            ]
        return [task.result() for task in tasks]

    def now(self) -> float:
        """When this attempt began, in Unix seconds: the same in every replay."""
        return self._calls.began_at

    def uuid(self) -> str:
        """A random id that is the same in every replay."""
        return str(uuid.UUID(int=self.random.getrandbits(128), version=4))

    async def sleep(self, seconds: float) -> None:
        """Wait; a replay waits again."""
        await asyncio.sleep(seconds)

    def _claim(self) -> str:
        place = str(self._next)
        self._next += 1
        return f"{self._prefix}{place}"

    def _prefix_of(self, place: str) -> str:
        return f"{place}."


async def _await(branch: Awaitable[T]) -> T:
    return await without_exit(branch)


def _arguments(call: Item) -> str:
    arguments = call.get("arguments", "")
    return arguments if isinstance(arguments, str) else json.dumps(arguments)


__all__ = ["AgentTask", "Context", "ModelFailed", "ModelReply", "ToolReply", "ToolResult"]
