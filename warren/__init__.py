"""Warren collects rollouts of LLM agents for reinforcement learning, over RabbitMQ.

Everything that an environment's file needs is imported from here.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Final

from broker.messages import Limits as RolloutLimits
from broker.messages import Sampling
from warren.checks import InvalidEnvironment
from warren.environment import Environment, Task
from warren.loading import list_environments, load_environment
from workers.agent.context import AgentTask, Context, ModelFailed, ModelReply, ToolReply
from workers.agent.conversation import Conversation
from workers.agent.loop import single_turn, tool_loop
from workers.spec import (
    Item,
    JudgeVerdict,
    PolicyRequest,
    Rollout,
    VerifierContext,
    Vote,
    message_text,
)

if TYPE_CHECKING:
    from warren.equivalence import MathEquality
    from warren.rubrics import correctness, efficiency, hybrid, quality
    from warren.sandbox import (
        CallCase,
        Limits,
        ProgramCase,
        SandboxResult,
        TestReport,
        python,
        run_code,
        run_tests,
        shell,
    )
    from warren.trainer import TrainerClient

__version__ = "0.1.0"

__all__ = [
    "AgentTask",
    "CallCase",
    "Context",
    "Conversation",
    "Environment",
    "InvalidEnvironment",
    "Item",
    "JudgeVerdict",
    "Limits",
    "MathEquality",
    "ModelFailed",
    "ModelReply",
    "PolicyRequest",
    "ProgramCase",
    "Rollout",
    "RolloutLimits",
    "Sampling",
    "SandboxResult",
    "Task",
    "TestReport",
    "ToolReply",
    "TrainerClient",
    "VerifierContext",
    "Vote",
    "correctness",
    "efficiency",
    "hybrid",
    "list_environments",
    "load_environment",
    "message_text",
    "python",
    "quality",
    "run_code",
    "run_tests",
    "shell",
    "single_turn",
    "tool_loop",
]


#: What few environments use, by where it is; it is imported when it is asked for.
_LATER: Final = {
    "warren.equivalence": {"MathEquality"},
    "warren.rubrics": {"correctness", "efficiency", "hybrid", "quality"},
    "warren.sandbox": {
        *("CallCase", "Limits", "ProgramCase", "SandboxResult", "TestReport"),
        *("python", "run_code", "run_tests", "shell"),
    },
    "warren.trainer": {"TrainerClient"},
}


def __getattr__(name: str) -> object:
    for module, names in _LATER.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module 'warren' has no attribute {name!r}")
