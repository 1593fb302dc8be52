"""A verdict on a solution is right, whatever the solution does about it."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from tests.support import sandboxes
from workers.sandbox import (
    BrokenTests,
    CallCase,
    Limits,
    ProgramCase,
    TestReport,
    run_tests,
    run_unsafe,
)

LIMITS = Limits(wall_s=5.0, cpu_s=5.0)
ADD = "def add(a, b):\n    return a + b\n"
ADD_TESTS = """
from solution import add

def test_small():
    assert add(2, 3) == 5

def test_negative():
    assert add(-2, -3) == -5

def test_text():
    assert add('a', 'b') == 'ab'
"""
ADD_CASES = [CallCase("add", [2, 3], 5), CallCase("add", [-2, -3], -5)]


@pytest.fixture(scope="module", autouse=True)
def bubblewrap() -> None:
    sandboxes.install_bubblewrap()


async def judge(solution: str, tests: "str | Sequence[CallCase]" = ADD_TESTS) -> TestReport:
    return await run_tests(solution, tests, LIMITS)


async def test_a_right_solution_passes_every_kind_of_test() -> None:
    assert await judge(ADD) == TestReport(3, 3, ())
    assert await judge(ADD, ADD_CASES) == TestReport(2, 2, ())
    assert await judge(ADD, "assert add(1, 2) == 3\nassert add(0, 0) == 0") == TestReport(1, 1, ())


async def test_a_wrong_solution_fails_where_it_is_wrong() -> None:
    report = await judge("def add(a, b):\n    return abs(a) + b if a != 'a' else 'ab'")
    assert (report.passed, report.total) == (2, 3)
    assert report.failures[0].name == "test_negative"
    assert "line 8: AssertionError" in report.failures[0].message
    report = await judge("def add(a, b):\n    return 5", ADD_CASES)
    assert [f.message for f in report.failures] == ["AssertionError: case 2: add gave 5, not -5"]


#: Expected, given, whether that is right.
ANSWERS = [
    *((1, True, False), (True, 1, False), (0, False, False), (True, True, True), (1, 1.0, True)),
    *(([1, [0]], [1, [False]], False), ([True], [True], True), ({"a": 1}, {"a": True}, False)),
    *(({1: "x"}, {True: "x"}, False), ({1}, {True}, False), ({(1, 2)}, {(True, 2)}, False)),
    *(({"a": [1.0]}, {"a": [1]}, True), ((1, 2), (1, 2), True), ([1, 2], (1, 2), False)),
]


async def test_true_is_not_one_however_deep_and_a_whole_float_is_an_integer() -> None:
    given = [answer for _, answer, _ in ANSWERS]
    cases = [CallCase("pick", [n], expected) for n, (expected, _, _) in enumerate(ANSWERS)]
    report = await judge(f"def pick(n): return {given!r}[n]", cases)
    failed = {failure.name for failure in report.failures}
    right = [f"case {n + 1}: pick" not in failed for n in range(len(ANSWERS))]
    assert right == [fine for _, _, fine in ANSWERS], report


HOSTILE = {
    "exits": "import os; os._exit(0)",
    "exits when called": "import os\ndef add(a, b): os._exit(0)",
    "raises SystemExit": "raise SystemExit(0)",
    "raises SystemExit when called": "def add(a, b): raise SystemExit(0)",
    "forges passes": """
import os
for fd in range(3, 20):
    for text in (b'{"test": "test_small", "error": null}', b'{"tests": []}', b'PASSED'):
        try: os.write(fd, text + b'\\n')
        except OSError: pass
print('{"test": "test_small", "error": null}\\n3 passed')
def add(a, b): print('{"test": "test_small", "error": null}')
""",
    "equals everything": """
class Yes(int):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __bool__(self): return True
    __hash__ = int.__hash__
def add(a, b): return Yes(99)
""",
    "an object that equals everything": """
class Yes:
    def __eq__(self, other): return True
    __hash__ = None
def add(a, b): return Yes()
""",
    "patches the harness": """
import builtins, json, sys
for name, module in list(sys.modules.items()):
    for key in list(getattr(module, '__dict__', {})):
        if key in ('_check', '_run', 'pack', '_exception'):
            setattr(module, key, lambda *a, **k: None)
builtins.AssertionError = type('Nothing', (Exception,), {})
json.loads = lambda *a, **k: {}
def add(a, b): return 1
""",
    "inspects frames and memory": """
import gc, os, sys
def add(a, b):
    frame, found = sys._getframe(), []
    while frame:
        found += [v for v in frame.f_locals.values()]
        frame = frame.f_back
    for thing in gc.get_objects():
        if isinstance(thing, dict) and 'expected' in thing:
            return thing['expected']
    return found[0]
""",
    "reads the tests": """
import glob, os
def add(a, b):
    found = ''
    for root in ('/tmp', '/dev/shm', '/proc/1', '/proc/self/fd'):
        for path in glob.glob(root + '/**', recursive=False) + glob.glob('/tmp/**', recursive=True):
            try: found += open(path).read(100_000) if os.path.isfile(path) else ''
            except (OSError, ValueError): pass
    if 'test_' + 'negative' in found or '"exp' + 'ected"' in found: return a + b
    return 'nothing found'
""",
    "offers builtins of its own": """
def all(*a): return True
def len(*a): return 0
def isinstance(*a): return True
def add(a, b): return None
""",
    "floods the answers": """
import os
def add(a, b):
    for fd in range(3, 20):
        try:
            while True: os.write(fd, b'[' * 65536)
        except OSError: pass
""",
    "answers with a nest": """
def add(a, b):
    nest = []
    for _ in range(100_000): nest = [nest]
    return nest
""",
    "answers with a cycle": "def add(a, b):\n    c = []; c.append(c); return c",
    "answers with a bomb": "def add(a, b): return 'x' * (200 << 20)",
    "closes its pipes": "import os; os.closerange(3, 100)",
    "forks and answers twice": "import os; os.fork()\ndef add(a, b): return None",
    "hangs": "while True: pass",
    "hangs when called": "def add(a, b):\n    while True: pass",
    "fills memory": "def add(a, b):\n    x = []\n    while True: x.append(bytearray(1 << 24))",
    "has a syntax error": "def add(a, b) return a",
    "defines nothing": "",
    "defines something else": "add = 5",
    "raises what tests raise": "def add(a, b): raise AssertionError('skipped')",
    "is not text": "\ud800",
    "has a NUL": "def add(a, b): return a\0",
}


@pytest.mark.parametrize("solution", HOSTILE.values(), ids=HOSTILE)
async def test_a_hostile_solution_passes_nothing(solution: str) -> None:
    limits = Limits(wall_s=2.0, cpu_s=2.0)
    async with asyncio.TaskGroup() as group:
        functions = group.create_task(run_tests(solution, ADD_TESTS, limits))
        cases = group.create_task(run_tests(solution, ADD_CASES, limits))
    for report, total in ((functions.result(), 3), (cases.result(), 2)):
        assert (report.passed, report.total) == (0, total), report
        assert len(report.failures) == total


async def test_answers_sent_ahead_are_only_answers() -> None:
    ahead = """
import os
for fd in range(3, 20):
    try: os.write(fd, b'{"value": 5}\\n' * 10)
    except OSError: pass
"""
    report = await judge(ahead)
    assert report.passed <= 1  # it may guess; it can't know


async def test_a_timeout_says_so_and_keeps_what_passed() -> None:
    solution = "def add(a, b):\n    while a == -2: pass\n    return a + b"
    report = await run_tests(solution, ADD_TESTS, Limits(wall_s=2.0, cpu_s=30))
    assert report.passed == 1
    assert "timeout" in report.failures[0].message


async def test_values_keep_their_types() -> None:
    solution = "def same(x): return x"
    tests = """
values = [None, True, 3, 10**50, 2.5, float('inf'), 'h\u00e9\\ud800', b'\\x00\\xff', 2j,
          bytearray(b'x'), [1, [2]], (1, (2,)), {1, 2}, frozenset({(1, 2)}),
          {1: 'a', (2, 3): {'b': None}}, {'ref': 0}]
for value in values:
    back = same(value)
    assert back == value and type(back) is type(value), value
"""
    assert (await judge(solution, tests)).ok, await judge(solution, tests)


async def test_classes_exceptions_iterators_and_changes_in_place_work() -> None:
    solution = """
from dataclasses import dataclass
@dataclass
class Stack:
    items: list
    def push(self, x): self.items.append(x); return self
    def pop(self):
        if not self.items: raise IndexError('empty')
        return self.items.pop()
    def __len__(self): return len(self.items)
def count():
    n = 0
    while True:
        yield n; n += 1
def sort_in_place(xs): xs.sort()
class Custom(ValueError): pass
def refuse(): raise Custom('no')
LIMIT = 7
"""
    tests = """
import itertools
import solution

def test_class():
    stack = solution.Stack([1])
    stack.push(2).push(3)
    assert len(stack) == 3 and stack.pop() == 3 and stack.items == [1, 2]

def test_error():
    for call, kind in ((Stack([]).pop, IndexError), (refuse, ValueError)):
        try:
            call()
        except kind:
            pass
        else:
            assert False

def test_generator():
    assert list(itertools.islice(count(), 4)) == [0, 1, 2, 3]

def test_in_place():
    xs = [3, 1, 2]
    assert sort_in_place(xs) is None
    assert xs == [1, 2, 3]

def test_constant():
    assert solution.LIMIT == 7
"""
    assert await judge(solution, tests) == TestReport(5, 5, ())


async def test_programs_are_compared_by_what_they_print() -> None:
    cases = [ProgramCase("1 2\n", "3\n"), ProgramCase("5 5", "10"), ProgramCase("0 0", "0 \n\n")]
    right = "print(sum(map(int, input().split())))"
    assert await run_tests(right, cases, LIMITS) == TestReport(3, 3, ())
    report = await run_tests("print(3)", cases, LIMITS)
    assert (report.passed, report.total) == (1, 3)
    assert report.failures[0].name == "case 2"
    report = await run_tests(right + "; import os; os._exit(1)", cases, LIMITS)
    assert report.passed == 0


BROKEN: dict[str, tuple[str | list[Any], str]] = {
    "no Python": ("def test(:", "SyntaxError"),
    "a module that isn't there": ("import pytest\ndef test_x(): assert add(1, 2) == 3", "pytest"),
    "an error of their own": ("1 / 0", "ZeroDivisionError"),
    "none at all": ([], "no tests"),
    "coroutines, which nobody would await": ("async def test_x(): assert add(1, 2) == 0", "async"),
    "a check that nobody calls": ("def check(f): assert f(1, 2) == 0", "do they call it"),
    "nothing that could fail": ("def test_x(): pass", "do they call it"),
    "two of one name": (
        "def test_x(): assert add(1, 2) == 0\ndef test_x(): add(1, 2)",
        "two tests",
    ),
    "cases of both kinds": ([ProgramCase("", ""), CallCase("add", [1, 2], 0)], "all ProgramCase"),
}


@pytest.mark.parametrize(("tests", "said"), BROKEN.values(), ids=BROKEN)
async def test_broken_tests_are_never_the_solutions_fault_nor_its_luck(
    tests: str | list[Any], said: str
) -> None:
    with pytest.raises(BrokenTests, match=said):
        await run_tests(ADD, tests, LIMITS)


async def test_methods_of_classes_are_tests_too() -> None:
    tests = """
import unittest

class TestPlain:
    def test_small(self):
        assert add(1, 2) == 3

class Unit(unittest.TestCase):
    def setUp(self):
        self.one = 1

    def test_equal(self):
        self.assertEqual(add(self.one, 2), 3)

    def test_raises(self):
        with self.assertRaises(TypeError):
            add(1, None)
"""
    assert await judge(ADD, tests) == TestReport(3, 3, ())
    report = await judge("def add(a, b): return 4", tests)
    assert [f.name for f in report.failures] == [
        "TestPlain.test_small", "Unit.test_equal", "Unit.test_raises",
    ]  # fmt: skip


async def test_an_exception_of_the_solutions_ends_no_loop_of_the_tests() -> None:
    tests = "def test_all():\n    assert all(map(lambda n: add(n, 1) == n + 1, range(3)))"
    assert (await judge("def add(a, b): raise StopIteration", tests)).passed == 0
    assert (await judge(ADD, tests)).ok


async def test_integers_have_no_limit() -> None:
    big = 7**9000
    assert await judge("def power(a, b): return a**b", [CallCase("power", [7, 9000], big)]) == (
        TestReport(1, 1, ())
    )
    report = await judge("def power(a, b): return a**b + 1", [CallCase("power", [7, 9000], big)])
    assert "too long to show" in report.failures[0].message


async def test_a_module_level_use_of_a_broken_solution_is_its_fault() -> None:
    report = await judge("1 / 0", "import solution\nX = solution.add\ndef test_x(): pass")
    assert (report.passed, report.total) == (0, 1)


async def test_tests_run_without_a_sandbox_where_that_is_asked_for() -> None:
    assert await run_tests(ADD, ADD_TESTS, LIMITS, run=run_unsafe) == TestReport(3, 3, ())


async def test_cancellation_ends_both_sandboxes() -> None:
    solution = "import os; os.execv('/bin/sleep', ['sleep', '98765.5'])"
    task = asyncio.create_task(run_tests(solution, ADD_TESTS, Limits(wall_s=60)))
    await sandboxes.eventually(lambda: sandboxes.processes_with("98765.5"))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sandboxes.processes_with("98765.5") == []
