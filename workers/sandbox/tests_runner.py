"""Does a solution pass its hidden tests? Decided where the solution can't reach.

The solution runs in one sandbox, the tests in another; two pipes between them carry calls and plain
values. So it can't read what is expected of it, can't touch the code that compares, and can't say
that it passed: whatever it prints, returns or destroys, it only chooses its answers.
"""

import asyncio
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Protocol

from workers.sandbox.inside import wire
from workers.sandbox.limits import DEFAULT_LIMITS, Limits, SandboxResult
from workers.sandbox.run import Language, run_code

#: The tests outlive a solution that used up its time, so that they can say what failed.
_JUDGE_EXTRA_S: Final = 2.0
_INSIDE: Final = "workers/sandbox/inside"


#: Its pipes closed, a solution ends by itself and says how; one that hangs is killed.
_GOODBYE_S: Final = 0.3


class Runner(Protocol):
    """`run_code`, or `run_unsafe`."""

    async def __call__(
        self,
        code_or_argv: str | Sequence[str],
        *,
        language: Language = "python",
        files: Mapping[str, bytes] | None = None,
        stdin: bytes = b"",
        limits: Limits = DEFAULT_LIMITS,
        handles: Sequence[io.FileIO] = (),
    ) -> SandboxResult: ...


@dataclass(frozen=True, slots=True)
class CallCase:
    """Call a function of the solution's; the answer must equal what is expected."""

    function: str
    args: Sequence[Any]
    expected: Any
    """Plain data: numbers, text, bytes, lists, tuples, sets, dicts of those.

    Compared as by `==`, but that True is not 1, nor False 0, however deep inside.
    """
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ProgramCase:
    """Run the solution as a program; its output must be this, apart from space at line ends."""

    stdin: str
    stdout: str


@dataclass(frozen=True, slots=True)
class TestFailure:
    """A test that didn't pass. The message may quote hidden expectations: not for the model."""

    __test__ = False

    name: str
    message: str


@dataclass(frozen=True, slots=True)
class TestReport:
    """How many of all tests passed; tests that were never reached count as failed."""

    __test__ = False

    passed: int
    total: int
    failures: tuple[TestFailure, ...]

    @property
    def ok(self) -> bool:
        return self.passed == self.total


class BrokenTests(Exception):
    """The tests themselves don't load or report; says nothing about the solution."""


async def run_tests(
    solution: str,
    tests: str | Sequence[CallCase] | Sequence[ProgramCase],
    limits: Limits = DEFAULT_LIMITS,
    *,
    run: Runner = run_code,
) -> TestReport:
    """Judge Python source by test source or by cases.

    Test source holds functions named `test...`, classes with such methods (unittest's too), or
    just assertions, which count as one test. It uses the solution's names directly or by `import
    solution`; only the standard library is there. Arguments and results are plain data; other
    objects of the solution's can be called, asked for attributes and iterated. Lists that it
    changes in place come back changed, so tests should work out what they expect before they call.
    `limits` hold for the whole solution, or for each program case.
    Raises BrokenTests, SandboxError.
    """
    if not isinstance(tests, str) and not tests:
        raise BrokenTests("there are no tests")
    if isinstance(tests, str):
        return await _judged(solution, "tests.py", tests.encode(), limits, run)
    programs = [case for case in tests if isinstance(case, ProgramCase)]
    if programs and len(programs) < len(tests):
        raise BrokenTests("cases are either all CallCase or all ProgramCase")
    if programs:
        return await _run_programs(solution, programs, limits, run)
    calls = [case for case in tests if isinstance(case, CallCase)]
    return await _judged(solution, "cases.json", _packed(calls), limits, run)


async def _judged(
    solution: str, name: str, tests: bytes, limits: Limits, run: Runner
) -> TestReport:
    outlive = replace(
        limits,
        wall_s=limits.wall_s + _JUDGE_EXTRA_S,
        cpu_s=limits.cpu_s + _JUDGE_EXTRA_S,
        memory_bytes=max(limits.memory_bytes, DEFAULT_LIMITS.memory_bytes),
        output_bytes=max(limits.output_bytes, DEFAULT_LIMITS.output_bytes),
    )
    theirs = {"solution.py": solution.encode("utf-8", "replace"), **_inside("wire", "solve")}
    ours = {name: tests, **_inside("wire", "judge")}
    with _pipe() as (requests, asking), _pipe() as (answers, answering):
        solve = _main("solve", requests, answering)
        judge = _main("judge", asking, answers)
        try:
            async with asyncio.TaskGroup() as group:
                solving = group.create_task(
                    run(solve, files=theirs, limits=limits, handles=[requests, answering])
                )
                judged = await run(judge, files=ours, limits=outlive, handles=[asking, answers])
                await asyncio.wait({solving}, timeout=_GOODBYE_S)
                solving.cancel()
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from errors
    return _report(judged, None if solving.cancelled() else solving.result())


async def _run_programs(
    solution: str, cases: Sequence[ProgramCase], limits: Limits, run: Runner
) -> TestReport:
    failures = []
    for number, case in enumerate(cases, start=1):
        result = await run(solution, stdin=case.stdin.encode(), limits=limits)
        message = _wrong(result, case)
        if message:
            failures.append(TestFailure(f"case {number}", message))
    return TestReport(len(cases) - len(failures), len(cases), tuple(failures))


def _wrong(result: SandboxResult, case: ProgramCase) -> str:
    """Why a program's run isn't the expected one; empty when it is."""
    if result.killed_by:
        return f"killed: {result.killed_by}"
    if result.exit_code != 0:
        return f"exit code {result.exit_code}: {result.stderr[-300:].decode(errors='replace')}"
    output = result.stdout.decode(errors="replace")
    if _lines(output) != _lines(case.stdout):
        return f"printed {output!r:.200}, not {case.stdout!r:.200}"
    return ""


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().split("\n")]


def _report(judged: SandboxResult, solution: SandboxResult | None) -> TestReport:
    """Read what the tests' sandbox reported; only trusted code has written there."""
    said = [json.loads(line) for line in judged.stdout.split(b"\n")[:-1]]
    broken = next((message["broken"] for message in said if "broken" in message), None)
    if broken is not None or not said:
        raise BrokenTests(broken or judged.stderr[-500:].decode(errors="replace"))
    outcomes = {m["test"]: m["error"] for m in said if "test" in m}
    names = said[0]["tests"]
    why = f" ({solution.killed_by})" if solution and solution.killed_by else ""
    failures = [
        TestFailure(name, f"{error}{why}")
        for name in names
        if (error := outcomes.get(name, "never finished")) is not None
    ]
    return TestReport(len(names) - len(failures), len(names), tuple(failures))


def _packed(cases: Sequence[CallCase]) -> bytes:
    plain = [
        {
            "name": f"case {number}: {case.function}",
            "function": case.function,
            "args": list(case.args),
            "kwargs": dict(case.kwargs),
            "expected": case.expected,
        }
        for number, case in enumerate(cases, start=1)
    ]
    return json.dumps(wire.pack(plain, _refuse)).encode()


def _refuse(value: object) -> int:
    raise BrokenTests(f"cases hold plain data only, not a {type(value).__name__}")


def _main(module: str, first: io.FileIO, second: io.FileIO) -> str:
    return (
        f"from {_INSIDE.replace('/', '.')} import {module}\n"
        f"{module}.main({first.fileno()}, {second.fileno()})\n"
    )


def _inside(*modules: str) -> dict[str, bytes]:
    folder = Path(__file__).parent / "inside"
    return {f"{_INSIDE}/{m}.py": (folder / f"{m}.py").read_bytes() for m in modules}


@contextmanager
def _pipe() -> Iterator[tuple[io.FileIO, io.FileIO]]:
    """Its read and its write end; closing them twice is harmless."""
    with ExitStack() as stack:
        read, write = os.pipe()
        yield (
            stack.enter_context(io.FileIO(read, "r")),
            stack.enter_context(io.FileIO(write, "w")),
        )
