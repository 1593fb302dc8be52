"""Warren collects rollouts of LLM agents for reinforcement learning, over RabbitMQ.

Everything that an environment's file needs is imported from here.
"""

from typing import TYPE_CHECKING

from warren.checks import InvalidEnvironment
from warren.environment import Environment, Task
from warren.equivalence import MathEquality
from warren.loading import list_environments, load_environment
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
from workers.spec import Item, PolicyRequest, Rollout, VerifierContext, message_text

if TYPE_CHECKING:
    from warren.trainer import TrainerClient

__version__ = "0.1.0"

__all__ = [
    "CallCase",
    "Environment",
    "InvalidEnvironment",
    "Item",
    "Limits",
    "MathEquality",
    "PolicyRequest",
    "ProgramCase",
    "Rollout",
    "SandboxResult",
    "Task",
    "TestReport",
    "TrainerClient",
    "VerifierContext",
    "list_environments",
    "load_environment",
    "message_text",
    "python",
    "run_code",
    "run_tests",
    "shell",
]


def __getattr__(name: str) -> object:
    """Names that environments don't need are imported when they are asked for."""
    if name == "TrainerClient":
        from warren.trainer import TrainerClient

        return TrainerClient
    raise AttributeError(f"module 'warren' has no attribute {name!r}")
