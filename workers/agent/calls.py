"""Makes a rollout's calls through its owner, counts them against its limits, records them."""

import asyncio
import functools
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NoReturn

from broker import codec
from broker.messages import (
    CallRecord,
    Failure,
    ModelCall,
    ModelResult,
    Status,
    Task,
    ToolCall,
    ToolResult,
    waited_too_long,
)
from broker.topology import MODEL, TOOL, Lane, model_key, model_queue
from workers.agent.conversation import Conversation
from workers.owner import Owner
from workers.sessions import Address, SessionGone, session_key, while_alive
from workers.spec import EnvironmentSpec, Item
from workers.waiting import Ask


class RolloutEnded(BaseException):
    """Ends a rollout from inside a call; not an Exception, so agents can't swallow it."""

    def __init__(self, status: Status, error: Failure) -> None:
        super().__init__(error.message)
        self.status = status
        self.error = error


class CallMaker:
    """All calls of one rollout in one worker's hands."""

    def __init__(
        self,
        owner: Owner,
        task: Task,
        spec: EnvironmentSpec,
        *,
        row: bytes,
        tools: bytes,
        options: Mapping[str, Any],
    ) -> None:
        self.attempt = owner.run.attempt
        self.began_at = owner.run.first_taken_at
        self.tools = tools
        self.session = b""
        """Packed address of the sticky session, once `setup` has made one."""
        self.session_gone = False
        """Whether the session has ended: nothing that follows means anything."""
        self.cut = False
        """Whether the last policy call of the root branch hit a length limit."""
        self.main: str | None = None
        """Path of the last policy call of the root branch."""
        self.main_conversation: Conversation | None = None
        self.deadline = time.time() + task.limits.timeout_s
        """Unix seconds at which the rollout ends. It counts from this take: the time for which a
        rollout lay in a queue, because workers were stopped, is not its own."""
        self._owner = owner
        self._task = task
        self._spec = spec
        self._row = row
        self._options = options
        self._packed_options = codec.pack(options)
        self._waits = task.limits.waits
        self._lane = call_lane(task)
        self._records: dict[str, CallRecord | None] = {}
        self._ends: dict[bytes, str] = {}
        self._continuing: set[str] = set()
        """Paths whose server goes on from their tokens."""
        self._main_length = 0
        self._steps = 0
        self._tokens = 0
        stateful = spec.state is not None or spec.session is not None
        self._one_by_one = asyncio.Lock() if stateful else None

    @property
    def records(self) -> tuple[bytes, ...]:
        """Finished calls, packed, in the order they were begun."""
        return tuple(codec.pack(r) for r in self._records.values() if r is not None)

    @property
    def digest(self) -> bytes:
        """Identifies all finished calls: the same in every replay."""
        done = (record for record in self._records.values() if record is not None)
        return codec.sha256(*(part for r in done for part in (r.path.encode(), r.result)))

    async def model(
        self,
        path: str,
        conversation: Conversation,
        model: str | None,
        tools: Sequence[Item] | None,
        options: Mapping[str, Any],
    ) -> tuple[ModelResult, list[Item]]:
        """One model call, and its output items, which are appended to the conversation."""
        self._check_budget()
        policy = model is None or model == self._task.model
        name = self._task.model if model is None else model
        offered = self.tools if tools is None and policy else codec.pack(list(tools or ()))
        packed_options = self._packed_options
        if options or not policy:
            packed_options = codec.pack({**(self._options if policy else {}), **options})
        given = len(conversation)
        shared = self._shared(conversation, given)
        parent = self._ends[conversation.digests[shared]] if shared else None
        known_ids = self._known(parent, name)
        ask = Ask(
            path=path,
            request_hash=codec.digest(
                name.encode(), offered, packed_options, conversation.digests[-1]
            ),
            exchange=MODEL.name,
            key=model_key(self._lane, name),
            message=functools.partial(
                ModelCall,
                run=self._task.run,
                environment=self._task.environment,
                lane=self._lane,
                model=name,
                input=tuple(conversation.packed),
                tools=offered,
                options=packed_options,
                sticky=self._task.rollout_id,
                known_ids=known_ids,
                known_items=shared if known_ids else 0,
            ),
            timeout_s=self._timeout_s(),
            on_timeout=functools.partial(_model_timeout, name, self._task.limits.call_timeout_s),
            wait_s=self._waits.model_s,
            on_wait=functools.partial(_model_late, self._waits.model_s),
            queue=None if policy else model_queue(self._lane, name),
        )
        self._records[path] = None
        started_at = time.time()
        packed = await self._owner.call(ask)
        result = codec.read(ModelResult, packed)
        self._records[path] = CallRecord(
            path=path,
            kind="model",
            parent=parent,
            shared_items=shared,
            new_items=tuple(conversation.packed[shared:given]),
            name=name,
            request=packed_options,
            result=packed,
            started_at=started_at,
            finished_at=time.time(),
        )
        self._tokens += result.usage.prompt_tokens + result.usage.generated_tokens
        items: list[Item] = codec.unpack(result.items) if result.items else []
        conversation.extend(items)
        self._note_end(path, conversation, result, policy)
        return result, items

    def _known(self, parent: str | None, model: str) -> bytes:
        """The tokens of the longest beginning that the same model has seen, as its engine said.

        Only for a server that goes on from them: they are most of what a call would weigh.
        """
        record = self._records[parent] if parent in self._continuing else None
        if record is None or record.name != model:
            return b""
        tokens = codec.read(ModelResult, record.result).tokens
        return b"" if tokens is None else tokens.prompt_ids + tokens.generated_ids

    def _shared(self, conversation: Conversation, given: int) -> int:
        """How many of the first `given` items an earlier call's conversation ends with."""
        return next((n for n in range(given, 0, -1) if conversation.digests[n] in self._ends), 0)

    def _note_end(
        self, path: str, conversation: Conversation, result: ModelResult, policy: bool
    ) -> None:
        self._ends[conversation.digests[-1]] = path
        if result.continues:
            self._continuing.add(path)
        if policy and "." not in path:
            self.main, self.main_conversation = path, conversation
            self._main_length = len(conversation)
            self.cut = result.finish_reason in ("length", "context_overflow")

    @property
    def tail(self) -> tuple[bytes, ...]:
        """Packed items that were added to the main conversation after its last answer."""
        if self.main_conversation is None:
            return ()
        return tuple(self.main_conversation.packed[self._main_length :])

    async def setup(self) -> ToolResult:
        """Create the rollout's state, on a tool worker."""
        ready = await self._tool("setup", "", "setup", "{}", "setup")
        self.session = ready.session
        return ready

    async def tool(self, path: str, name: str, call_id: str, arguments: str) -> ToolResult:
        """One tool call; one at a time where it may touch the rollout's state."""
        tool = self._spec.tools.get(name)
        alone = tool is None or tool.effect != "pure"
        async with self._one_by_one if self._one_by_one and alone else nullcontext():
            name = name or "(none)"  # a call without a name is `setup`, which no model may make
            return await self._tool(path, name, call_id, arguments, "tool")

    async def _tool(
        self, path: str, name: str, call_id: str, arguments: str, kind: str
    ) -> ToolResult:
        ask = Ask(
            path=path,
            request_hash=codec.digest(name.encode(), call_id.encode(), arguments.encode()),
            exchange=TOOL.name,
            key=self._tool_key(),
            message=functools.partial(
                ToolCall,
                run=self._task.run,
                environment=self._task.environment,
                lane=self._lane,
                name=name,
                call_id=call_id,
                arguments=arguments,
                row=self._row if self._needs_row(name) else b"",
                session=self.session,
            ),
            timeout_s=self._timeout_s(),
            on_timeout=functools.partial(_tool_timeout, name, self._task.limits.call_timeout_s),
            wait_s=self._waits.tool_s,
            on_wait=functools.partial(_tool_late, self._waits.tool_s),
        )
        self._records[path] = None
        started_at = time.time()
        packed = await self._answer(ask)
        self._records[path] = CallRecord(
            path=path,
            kind="setup" if kind == "setup" else "tool",
            name=name,
            request=arguments.encode(),
            result=packed,
            started_at=started_at,
            finished_at=time.time(),
        )
        result = codec.read(ToolResult, packed)
        if result.session_gone:
            self._lose_session()
        return result

    async def _answer(self, ask: Ask) -> bytes:
        """The call's packed result, as long as the worker that must give it lives."""
        if not self.session or ask.path in self._owner.results:
            return await self._owner.call(ask)
        address = codec.read(Address, self.session)
        try:
            return await while_alive(self._owner.broker, address, self._owner.call(ask))
        except SessionGone:
            self._lose_session()

    def _lose_session(self) -> NoReturn:
        self.session_gone = True  # agents can't swallow what is looked at after they have ended
        raise SessionGone(f"the session of {self._task.rollout_id} has gone")

    def _needs_row(self, name: str) -> bool:
        tool = self._spec.tools.get(name)
        return not name or (tool is not None and tool.needs_task)

    def _tool_key(self) -> str:
        """Any tool worker of the environment, or the one that owns the rollout's session."""
        if not self.session:
            return self._task.environment
        return session_key(codec.read(Address, self.session))

    def _timeout_s(self) -> float:
        left = self.deadline - time.time()
        return max(min(self._task.limits.call_timeout_s, left + 5.0), 0.0)

    def _check_budget(self) -> None:
        limits = self._task.limits
        self._steps += 1
        if self._steps > limits.max_steps:
            raise RolloutEnded("truncated", _budget(f"stopped after {limits.max_steps} steps"))
        if limits.max_total_tokens is not None and self._tokens >= limits.max_total_tokens:
            raise RolloutEnded("truncated", _budget(f"stopped after {self._tokens} tokens"))


def call_lane(task: Task) -> Lane:
    """The lane of a task's model calls; a suspect endangers its agent, not the gateways."""
    return "resume" if task.lane == "suspect" else task.lane


def _budget(message: str) -> Failure:
    return Failure(kind="budget", message=message)


def _model_timeout(model: str, timeout_s: float) -> bytes:
    message = f"no answer from model {model!r} within {timeout_s:g} s"
    return codec.pack(ModelResult(error=Failure(kind="infra", message=message)))


def _model_late(wait_s: float | None) -> bytes:
    return codec.pack(ModelResult(error=waited_too_long("model", wait_s)))


def _tool_late(wait_s: float | None) -> bytes:
    error = waited_too_long("tool", wait_s)
    return codec.pack(ToolResult(output=f"error: {error.message}", error=error))


def _tool_timeout(tool: str, timeout_s: float) -> bytes:
    message = f"no answer from tool {tool!r} within {timeout_s:g} s"
    return codec.pack(
        ToolResult(output=f"error: {message}", error=Failure(kind="infra", message=message))
    )
