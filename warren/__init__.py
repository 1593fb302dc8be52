"""Warren collects rollouts of LLM agents for reinforcement learning, over RabbitMQ.

Everything that an environment's file needs is imported from here.
"""

from warren.checks import InvalidEnvironment
from warren.environment import Environment, Task
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

__version__ = "0.1.0"

__all__ = [
    "CallCase",
    "Environment",
    "InvalidEnvironment",
    "Item",
    "Limits",
    "PolicyRequest",
    "ProgramCase",
    "Rollout",
    "SandboxResult",
    "Task",
    "TestReport",
    "VerifierContext",
    "list_environments",
    "load_environment",
    "message_text",
    "python",
    "run_code",
    "run_tests",
    "shell",
]
