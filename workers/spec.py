"""What an environment gives to the workers: plain values that `warren.Environment` builds.

Workers know nothing of decorators or files; they see tools with schemas, reward functions with
weights, an agent, a policy for demos. An environment's *name* is what travels in messages.
"""

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import msgspec

from broker import codec
from broker.messages import Failure, Sampling, Status, Usage
from workers.threads import Threads

Item = dict[str, Any]
"""A Responses API item: message, function_call, function_call_output, reasoning, ..."""

Effect = Literal["pure", "idempotent", "at_most_once"]
"""What running a tool twice does: nothing; the same as once; harm."""


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool as the model sees it and as the tool worker runs it."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    """JSON schema of the arguments."""
    run: Callable[["ToolRun"], Awaitable[object]]
    """Validates the arguments against the signature, then runs the function."""
    effect: Effect = "idempotent"
    timeout_s: float = 60.0
    max_output_bytes: int = 64 * 1024
    isolated: bool = False
    """Always runs in a process of its own, which is killed at the timeout."""
    needs_task: bool = False
    """Whether its calls must carry the dataset's row."""
    needs_state: bool = True
    """Whether it looks at the state at all."""
    needs_session: bool = False
    """Whether it works on the rollout's sticky session."""

    def definition(self) -> Item:
        """The Responses API tool definition offered to models."""
        return {
            "type": "function",
            "name": self.name,
            "description": self.description,
            "parameters": dict(self.parameters),
            "strict": False,
        }


@dataclass(slots=True)
class ToolRun:
    """One run of a tool: what it gets, and the state it may change."""

    arguments: Mapping[str, Any]
    """Parsed JSON object, not yet validated."""
    idempotency_key: str
    """The same in every try of this call: rollout and path."""
    state: Any = None
    """The rollout's state, decoded; what the tool leaves here is stored with its result."""
    session: Any = None
    """The live object of a sticky session."""
    row: Mapping[str, Any] = field(default_factory=dict)
    """The task, for tools that ask for it (`ToolSpec.needs_task`)."""


class BadArguments(Exception):
    """The model's arguments don't fit the tool's schema; the text is for the model."""


@dataclass(frozen=True, slots=True)
class RewardSpec:
    """One reward function and its weight in the sum."""

    name: str
    weight: float
    run: Callable[["Rollout", "VerifierContext"], Awaitable[float]]
    timeout_s: float = 600.0
    """Judges have their calls' own deadlines within it."""
    isolated: bool = False
    """Always runs in a process of its own, which is killed at the timeout."""
    needs_session: bool = False
    """Runs where the rollout's sticky session lives; `Rollout.session` is the live object."""
    needs_ctx: bool = True
    """Whether it looks at its context at all, and so may ask a judge."""


class Rollout(msgspec.Struct, frozen=True, kw_only=True):
    """A finished rollout as verifiers see it. Read-only; model output in it is untrusted."""

    rollout_id: str
    task: Mapping[str, Any]
    """The dataset's row, every key of it."""
    prompt: Sequence[Item]
    """What the policy was given."""
    output: Sequence[Item]
    """What followed: the policy's items and the tools' outputs, main branch."""
    status: Status
    error: Failure | None
    state: Any
    """Final state of a stateful environment."""
    session: Any
    """The live object, for rewards that take `session`; None for all others."""
    steps: int
    usage: Usage

    @property
    def answer(self) -> str:
        """Text of the policy's last message; empty when there is none."""
        for item in reversed(self.output):
            if item.get("type") == "message" and item.get("role") == "assistant":
                return message_text(item)
        return ""

    @property
    def tool_calls(self) -> list[Item]:
        """The policy's tool calls in order: `name`, `arguments` (JSON text), `call_id`."""
        return [item for item in self.output if item.get("type") == "function_call"]

    @property
    def tool_outputs(self) -> list[Item]:
        """What the tools answered: dicts with `call_id` and `output`."""
        return [item for item in self.output if item.get("type") == "function_call_output"]


def message_text(item: Item) -> str:
    """The text of a message item, whatever the form of its content."""
    content = item.get("content")
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "".join(
        str(p.get("text", "")) for p in parts if isinstance(p, dict) and p.get("text") is not None
    )


@dataclass(frozen=True, slots=True)
class Vote:
    """One structured answer of a judge."""

    criteria: Mapping[str, float]
    """Each criterion's score, from 0 (not at all) to 1 (fully)."""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class JudgeVerdict:
    """What several votes came to, criterion by criterion."""

    criteria: Mapping[str, float]
    """Each criterion's score, from 0 to 1."""
    votes: Sequence[Vote]

    @property
    def score(self) -> float:
        """The criteria's mean, from 0 to 1."""
        return math.fsum(self.criteria.values()) / len(self.criteria)


Combine = Literal["mean", "median", "majority"]
"""How votes become one score. Majority: the most frequent; of equally frequent ones the lower."""


class VerifierContext(Protocol):
    """What a verifier may ask for while it judges; every call is journaled."""

    async def judge(
        self, prompt: str | Sequence[Item], *, model: str | None = None, **options: Any
    ) -> str:
        """Ask the judge model; the text of its answer.

        `model` is another than the environment's `judge_model`; `options` are further fields of
        a Responses request (temperature, ...). An error of the model ends the verification.
        """
        ...

    async def verdict(
        self,
        template: str,
        fields: Mapping[str, object],
        *,
        criteria: Mapping[str, str],
        votes: int = 1,
        combine: Combine = "mean",
        retries: int = 2,
        model: str | None = None,
        **options: Any,
    ) -> JudgeVerdict:
        """Ask the judge model to score each of the named criteria; the votes, combined.

        Rewards of a rollout that ask for the same verdict share it: one component per criterion
        costs no more than one for all. Where a vote is still unusable after `retries` further
        tries the verification fails: its reward is null, never 0.

        Args:
            template: what the judge reads, `{name}` standing for a field. What a field holds is
                inserted as it is, braces too. How to answer is added below it.
            fields: the values; text as it is, anything else as JSON.
            criteria: name -> what it asks for.
            votes: this many answers to the same question, asked for at once.
            combine: what they become, for each criterion.
        """
        ...


@dataclass(frozen=True, slots=True)
class PolicyRequest:
    """What a scripted policy sees of a model call."""

    items: Sequence[Item]
    tools: Sequence[Item]
    rollout: str
    """The rollout's id, `run/task/repeat`: hash it for deterministic variety."""
    path: str
    temperature: float | None = None


Policy = Callable[[PolicyRequest], "list[Item] | str | Awaitable[list[Item] | str]"]
"""A scripted policy: the next output items, or just the text of a message."""

AgentFunction = Callable[..., Awaitable[object]]
"""`async def agent(ctx, task)`: see workers/agent/context.py."""


@dataclass(frozen=True, slots=True)
class StateSpec:
    """How a stateful environment makes, packs and reads its state."""

    setup: Callable[[Mapping[str, Any]], Awaitable[object]]
    pack: Callable[[object], bytes]
    unpack: Callable[[bytes], object]
    timeout_s: float = 60.0
    """For `setup`."""


@dataclass(frozen=True, slots=True)
class SessionSpec:
    """How an environment opens a live object that one tool worker keeps for each rollout."""

    open: Callable[[Mapping[str, Any]], AbstractAsyncContextManager[object]]
    """From the dataset's row; left after the verdict."""
    timeout_s: float = 60.0
    """To open it."""
    lease_s: float = 1800.0
    """It is closed when no call has come for so long."""


@dataclass(frozen=True, slots=True)
class EnvironmentSpec:
    """One environment, as its workers need it."""

    name: str
    system_prompt: str = ""
    examples: Sequence[Item] = ()
    """Few-shot items that stand between the system prompt and the task."""
    tools: Mapping[str, ToolSpec] = field(default_factory=dict)
    rewards: Sequence[RewardSpec] = ()
    reward_range: tuple[float, float] = (0.0, 1.0)
    agent: AgentFunction | None = None
    """None: the default tool loop."""
    policy: Policy | None = None
    """Scripted model for demos and tests."""
    state: StateSpec | None = None
    session: SessionSpec | None = None
    judge_model: str | None = None
    source: str = ""
    """File that it was loaded from, for error texts."""
    reference: str = ""
    """What `warren.load_environment` takes to load it in another process; empty where none can."""
    threads: Threads = field(default_factory=Threads, compare=False, repr=False)
    """Where its synchronous functions run; counts those that outlived their timeout."""
    offered: bytes = field(init=False, compare=False, repr=False)
    """Packed list of its tools' definitions, made once; empty without tools."""

    def __post_init__(self) -> None:
        tools = [tool.definition() for tool in self.tools.values()]
        object.__setattr__(self, "offered", codec.pack(tools) if tools else b"")


__all__ = [
    "AgentFunction",
    "BadArguments",
    "Combine",
    "Effect",
    "EnvironmentSpec",
    "Item",
    "JudgeVerdict",
    "Policy",
    "PolicyRequest",
    "RewardSpec",
    "Rollout",
    "Sampling",
    "SessionSpec",
    "StateSpec",
    "ToolRun",
    "ToolSpec",
    "VerifierContext",
    "Vote",
    "message_text",
]
