"""What is said on the wire. Frozen, versioned, validated when decoded.

Big payloads (task rows, conversation items, results with their token arrays) are `bytes` fields:
packed once by whoever made them, passed through untouched by everybody else, unpacked once by
whoever needs them. So a hop costs the envelope, not the conversation.

    Task -> agent            ModelCall / ToolCall -> gateway / tool worker -> Reply -> agent
    Trajectory -> verifier   Result -> sink, trainer
"""

import math
from typing import Final, Literal

import msgspec

from broker.names import journal_key, rollout_id
from broker.topology import Lane

#: Version of every message below; a message of another version is dead-lettered, never guessed at.
SCHEMA_VERSION: Final = 1

ErrorKind = Literal["infra", "model", "tool", "agent", "verifier", "budget", "cancelled"]
"""Whose failure it was, as recorded in a row (GLOSSARY.md)."""

Status = Literal["completed", "truncated", "failed"]


class Packed(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is packed for the wire or the journal: fields with their default take no bytes.

    Structs, since they are made, packed and read in a tenth of a dataclass's time; change one
    with `msgspec.structs.replace`.
    """


class Failure(Packed, frozen=True, kw_only=True):
    """Why a rollout or a call failed, in words for its owner."""

    kind: ErrorKind
    message: str
    where: str = ""
    """Queue, call path, or the last lines of a traceback."""


class Sampling(Packed, frozen=True, kw_only=True):
    """How the policy samples; None leaves the choice to the task's row, then to the model."""

    temperature: float | None = None
    top_p: float | None = None
    max_output_tokens: int | None = None
    seed: int | None = None


class Waits(Packed, frozen=True, kw_only=True):
    """How long a message may wait in each kind of queue until somebody begins on it, in seconds.

    None: for any time. What has begun goes on, however often it comes back to the queue.
    """

    task_s: float | None = None
    """From its publication until an agent takes it; then a failed row."""
    model_s: float | None = None
    """Until a gateway begins; then the call has failed."""
    tool_s: float | None = None
    """Until a tool worker begins; then the call has failed."""
    verify_s: float | None = None
    """From the rollout's end until a verifier takes it; then a failed row, with the rollout."""


class Limits(Packed, frozen=True, kw_only=True):
    """What ends a rollout early, as `truncated`."""

    max_steps: int = 50
    timeout_s: float = 3600.0
    """From the moment an agent takes the rollout; one that goes on elsewhere has it anew."""
    call_timeout_s: float = 1200.0
    """Per model or tool call, waiting in queues included."""
    max_total_tokens: int | None = None
    """Prompt and generated tokens over all calls of the rollout."""
    waits: Waits = Waits()


class Budget(Packed, frozen=True, kw_only=True):
    """What ends a whole run early; None is no limit. Judges count too, failed tries do not."""

    max_tokens: int | None = None
    """Prompt and generated tokens."""
    max_cost_usd: float | None = None


class Task(Packed, frozen=True, kw_only=True):
    """One task instance: everything an agent needs to run it, and who gets its row."""

    run: str
    generation: str
    task_index: int
    """Zero-based input line."""
    repeat: int
    environment: str
    model: str
    row: bytes
    """The dataset's line: a JSON object, byte for byte as it came."""
    sampling: Sampling = Sampling()
    limits: Limits = Limits()
    budget: Budget = Budget()
    """The run's, the same in all its tasks."""
    audiences: tuple[str, ...] = ("sink",)
    """Who gets the result: `collect`, `sink`, or trainers' names (topology.result_key)."""
    lane: Lane = "normal"
    enqueued_at: float = 0.0
    """Unix seconds."""
    system_prompt: str | None = None
    """Replaces the environment's for this run; None keeps it."""
    examples: bytes | None = None
    """Packed few-shot items in the place of the environment's for this run; None keeps those."""
    judge_model: str | None = None
    """In the place of the environment's for this run; None keeps that."""
    attempt: int = 1
    """From 1; raised where a rollout whose failed row was committed is run again."""

    @property
    def rollout_id(self) -> str:
        return rollout_id(self.run, self.task_index, self.repeat)

    @property
    def journal_key(self) -> str:
        return journal_key(self.run, self.generation, self.task_index, self.repeat, self.attempt)

    @property
    def begin_by(self) -> float:
        """Unix seconds by which an agent must have taken it."""
        return self.enqueued_at + unless_none(self.limits.waits.task_s)


def waited_too_long(kind: str, wait_s: float | None) -> Failure:
    """Nobody began on a message within its queue's deadline."""
    message = f"waited longer than {unless_none(wait_s):g} s in its {kind} queue (--{kind}-wait)"
    return Failure(kind="infra", message=message)


def unless_none(wait_s: float | None) -> float:
    """The wait, or infinity where there is no limit to it."""
    return math.inf if wait_s is None else wait_s


class Call(Packed, frozen=True, kw_only=True):
    """What model and tool calls share: which call of which rollout, and where the answer goes."""

    rollout: str
    """The rollout's journal key."""
    epoch: str
    """The attempt that this call belongs to; an older one is GONE."""
    path: str
    """Position inside the rollout: `3`, `3.tool.0`, `verify.0`."""
    carrier: str
    """Names this published call over redeliveries and the retry ladder; claims are made in it."""
    request_hash: bytes
    held: int
    """How many results the owner held when it published; fewer in the journal means it was lost."""
    reply_to: str
    """Inbox to answer where the journal knows no owner."""
    deadline: float
    """Unix seconds after which nobody works on it any more."""
    run: str
    environment: str
    lane: Lane = "normal"
    tries: int = 0
    """How often a model or tool has already been asked in vain."""


class ModelCall(Call, frozen=True, kw_only=True):
    """Ask a model for the next items of a conversation."""

    model: str
    input: tuple[bytes, ...]
    """The conversation as Responses items, each packed once (codec.pack)."""
    tools: bytes = b""
    """Packed list of Responses tool definitions; empty for none."""
    options: bytes = b""
    """Packed mapping of further request fields: sampling, tool_choice, text, reasoning, ..."""
    sticky: str = ""
    """What the endpoint is chosen by (prefix cache): the rollout's id."""
    known_ids: bytes = b""
    """int32: the tokens, as the engine read and sampled them, that the first `known_items` of
    `input` stand for; empty where nobody said them. History is continued, never tokenised anew."""
    known_items: int = 0


class ToolCall(Call, frozen=True, kw_only=True):
    """Run one tool of an environment, or (`name` empty) its `setup`."""

    name: str
    call_id: str
    """The model's id of this call."""
    arguments: str
    """JSON text as the model wrote it: untrusted."""
    row: bytes = b""
    """The dataset's line; only for `setup` and tools that ask for the task."""
    session: bytes = b""
    """Packed address of the sticky session that must serve this call; empty for none."""
    action: Literal["tool", "reward", "close"] = "tool"
    """What its session's worker is asked for: a tool, a reward (`name`), or to close it."""
    judged: bytes = b""
    """The packed rollout that a reward is about."""


class Tokens(Packed, frozen=True, kw_only=True):
    """What the engine read and sampled in one model call, as packed little-endian arrays."""

    prompt_ids: bytes
    """int32, shape [prompt]: the whole prompt of the call."""
    generated_ids: bytes
    """int32, shape [generated]."""
    logprobs: bytes
    """float32, aligned to `generated_ids`."""


class Usage(Packed, frozen=True, kw_only=True):
    """Tokens and money of one call or of many."""

    prompt_tokens: int = 0
    generated_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    cost_usd: float = 0.0


class VersionSpan(Packed, frozen=True, kw_only=True):
    """The policy versions that produced a call or rollout, oldest and newest."""

    min: int
    max: int


class ModelResult(Packed, frozen=True, kw_only=True):
    """The answer to a ModelCall, as journaled: what was sampled, or why there is nothing."""

    items: bytes = b""
    """Packed list of Responses output items; empty when `error` is set."""
    finish_reason: str = ""
    """The engine's word: stop, length, tool_calls, content_filter, abort, context_overflow."""
    usage: Usage = Usage()
    tokens: Tokens | None = None
    continues: bool = False
    """Whether the server goes on from `tokens`; where it can't, nobody sends it `known_ids`."""
    versions: VersionSpan | None = None
    model: str = ""
    """What the provider says it served."""
    response_id: str = ""
    error: Failure | None = None
    seconds: float = 0.0
    """At the provider, the successful try only."""
    tries: int = 1
    """Requests made to the provider for this call."""


class ToolResult(Packed, frozen=True, kw_only=True):
    """The answer to a ToolCall, as journaled: text for the model, errors included."""

    output: str = ""
    """What the model reads."""
    error: Failure | None = None
    """Set when the tool failed; `output` then tells the model."""
    truncated: bool = False
    """Whether `output` was cut at the tool's cap."""
    in_doubt: bool = False
    """An at-most-once tool that may or may not have acted."""
    session: bytes = b""
    """From `setup` of an environment with sticky sessions: the packed address."""
    session_gone: bool = False
    """The session had ended: the rollout must start again."""
    seconds: float = 0.0


ReplyKind = Literal["result", "journal_lost", "gone", "mismatch"]


class Reply(Packed, frozen=True, kw_only=True):
    """A hint to a rollout's owner that a call has its result; the truth is in the journal."""

    rollout: str
    epoch: str
    path: str
    kind: ReplyKind = "result"
    result: bytes = b""
    """The packed result, or empty where it is too large for a hint."""


CallKind = Literal["model", "tool", "setup"]


class CallRecord(Packed, frozen=True, kw_only=True):
    """One finished call in a trajectory: a node of the forest."""

    path: str
    kind: CallKind
    parent: str | None = None
    """Model calls: the call whose conversation this one extends; None starts a new one."""
    shared_items: int = 0
    """How many items of the parent's conversation (its input, then its output) this one keeps."""
    new_items: tuple[bytes, ...] = ()
    """Model calls: packed input items after the shared ones."""
    name: str = ""
    """The model asked, or the tool called."""
    request: bytes = b""
    """Tool calls: the arguments. Model calls: packed options, where they differ from the task's."""
    result: bytes = b""
    """Packed ModelResult or ToolResult, byte for byte as journaled."""
    started_at: float = 0.0
    """Unix seconds at which this owner asked, or replayed."""
    finished_at: float = 0.0


class Trajectory(Packed, frozen=True, kw_only=True):
    """What a rollout leaves, unscored: everything the verifier and the row need."""

    task: bytes
    """The packed Task, byte for byte."""
    rollout: str
    """Journal key."""
    epoch: str
    attempt: int
    status: Status
    error: Failure | None = None
    digest: bytes = b""
    """SHA-256 of the task's row and what was said and done: the same whoever replays it whenever.
    Empty where that is not all that was, or nothing."""
    calls: tuple[bytes, ...] = ()
    """Packed CallRecords in the order they were begun."""
    main: str | None = None
    """Path of the model call that ends the main branch; None when no call was made."""
    tail_items: tuple[bytes, ...] = ()
    """Packed items after the last model call on the main branch (outputs nobody answered)."""
    tools: bytes = b""
    """Packed list of the tool definitions offered to the policy model."""
    prompt_items: int = 0
    """How many input items of the main branch are the prompt (row and environment)."""
    state: bytes = b""
    """Final state of a stateful environment, packed as its author's type; empty for none."""
    session: bytes = b""
    started_at: float = 0.0
    finished_at: float = 0.0


def begin_by(trajectory: Trajectory, task: Task) -> float:
    """Unix seconds by which a verifier must have taken a trajectory."""
    return trajectory.finished_at + unless_none(task.limits.waits.verify_s)


class Verdict(Packed, frozen=True, kw_only=True):
    """What the verifiers said."""

    reward: float | None
    """Null unless a verifier returned it: an infrastructure failure is never reward 0."""
    components: tuple[tuple[str, float], ...] = ()
    """Weighted parts; they sum to `reward`."""
    error: Failure | None = None
    seconds: float = 0.0
    calls: tuple[bytes, ...] = ()
    """Packed CallRecords of judge and tool calls."""


class Result(Packed, frozen=True, kw_only=True):
    """A finished rollout on its way to a sink or trainer."""

    rollout_id: str
    task_index: int
    repeat: int
    run: str
    generation: str
    trajectory: bytes
    """The packed Trajectory, byte for byte; compressed while it travels, where it is large."""
    verdict: Verdict
    attempt: int = 1
    """The task's, which names the rollout's record in the journal."""

    @property
    def journal_key(self) -> str:
        return journal_key(self.run, self.generation, self.task_index, self.repeat, self.attempt)


Message = Task | ModelCall | ToolCall | Reply | Trajectory | Result
"""What travels alone; the rest travels inside these or in the journal."""
