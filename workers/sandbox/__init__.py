"""Running code that nobody trusts: bubblewrap, limits, and a test runner that can't be talked to.

`run_code` confines, `probe` says whether this machine can, `run_tests` judges a solution.
"""

from workers.sandbox.limits import (
    DEFAULT_LIMITS,
    KilledBy,
    Limits,
    SandboxError,
    SandboxResult,
    SandboxUnavailable,
)
from workers.sandbox.probe import Available, Unavailable, probe
from workers.sandbox.run import Language, run_code
from workers.sandbox.tests_runner import (
    BrokenTests,
    CallCase,
    ProgramCase,
    TestFailure,
    TestReport,
    run_tests,
)
from workers.sandbox.unsafe import run_unsafe

__all__ = [
    "DEFAULT_LIMITS",
    "Available",
    "BrokenTests",
    "CallCase",
    "KilledBy",
    "Language",
    "Limits",
    "ProgramCase",
    "SandboxError",
    "SandboxResult",
    "SandboxUnavailable",
    "TestFailure",
    "TestReport",
    "Unavailable",
    "probe",
    "run_code",
    "run_tests",
    "run_unsafe",
]
