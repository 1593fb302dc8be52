"""Untrusted code for environments: ready-made tools, and a verdict on solutions.

    from warren import Environment, Rollout, python, run_tests

    env = Environment("code", ...)
    env.tool(python)  # the model may run Python; `shell` likewise

Everything runs in a sandbox without network, files or rights (workers/sandbox). Where there can be
none, calls raise SandboxUnavailable; `--unsafe-no-sandbox` is for those who trust the code anyway.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from warren.sandboxing import is_unsafe
from workers import sandbox
from workers.sandbox import (
    DEFAULT_LIMITS,
    CallCase,
    Language,
    Limits,
    ProgramCase,
    SandboxResult,
    TestReport,
)
from workers.sandbox.tests_runner import Runner

__all__ = [
    "CallCase",
    "Limits",
    "ProgramCase",
    "SandboxResult",
    "TestReport",
    "python",
    "run_code",
    "run_tests",
    "shell",
]

#: A tool's caller waits for it; longer runs are for verifiers.
_TOOL_LIMITS: Final = Limits(wall_s=20.0, cpu_s=20.0, output_bytes=64 * 1024)


async def run_code(
    code_or_argv: str | Sequence[str],
    *,
    language: Language = "python",
    files: Mapping[str, bytes] | None = None,
    stdin: bytes = b"",
    limits: Limits = DEFAULT_LIMITS,
) -> SandboxResult:
    """Run source code, or a command line, in a fresh sandbox; see workers/sandbox/run.py."""
    run = _runner()
    return await run(code_or_argv, language=language, files=files, stdin=stdin, limits=limits)


async def run_tests(
    solution: str,
    tests: str | Sequence[CallCase] | Sequence[ProgramCase],
    limits: Limits = DEFAULT_LIMITS,
) -> TestReport:
    """Does Python source pass hidden tests? See workers/sandbox/tests_runner.py for their forms."""
    return await sandbox.run_tests(solution, tests, limits, run=_runner())


async def python(code: str) -> str:
    """Run a Python program, and see what it prints. Nothing is kept between runs.

    Args:
        code: the whole program; only the standard library is there, and no network
    """
    return _told(await run_code(code, limits=_TOOL_LIMITS))


async def shell(command: str) -> str:
    """Run a shell command, and see what it prints. Nothing is kept between runs.

    Args:
        command: a script for /bin/sh; there is no network
    """
    return _told(await run_code(command, language="shell", limits=_TOOL_LIMITS))


def _runner() -> Runner:
    return sandbox.run_unsafe if is_unsafe() else sandbox.run_code


def _told(result: SandboxResult) -> str:
    """A run as the model reads it."""
    parts = [result.stdout.decode(errors="replace"), result.stderr.decode(errors="replace")]
    if result.killed_by:
        parts.append(f"[killed: {result.killed_by}]")
    elif result.exit_code:
        parts.append(f"[exit code {result.exit_code}]")
    return "\n".join(part.rstrip("\n") for part in parts if part)
