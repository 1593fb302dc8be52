"""The `code` environment: right solutions are paid, cheats are not; and the tools it builds on."""

import asyncio
import json
import re
from collections.abc import Mapping
from typing import Any, cast

import pytest

from broker.messages import Usage, Verdict
from tests.support import sandboxes
from warren import Limits, PolicyRequest, Rollout, load_environment, python, run_code, shell
from warren.sandboxing import without_sandbox
from workers.spec import EnvironmentSpec, Policy, ToolRun, VerifierContext
from workers.verifier.scoring import score

TASKS = [
    json.loads(line)
    for line in (sandboxes.REPOSITORY / "environments/tasks/code.jsonl").read_text().splitlines()
]


@pytest.fixture(scope="module", autouse=True)
def bubblewrap() -> None:
    sandboxes.install_bubblewrap()


@pytest.fixture(scope="module")
def spec() -> EnvironmentSpec:
    return load_environment("code").spec()


async def reward(spec: EnvironmentSpec, task: Mapping[str, Any], answer: str) -> float:
    given = (await verdict(spec, task, answer)).reward
    assert given is not None
    return given


async def verdict(spec: EnvironmentSpec, task: Mapping[str, Any], answer: str) -> Verdict:
    """What the verifier makes of the answer."""
    message = {"type": "message", "role": "assistant", "content": answer}
    rollout = Rollout(
        rollout_id="run/0/0",
        task=task,
        prompt=(),
        output=(message,),
        status="completed",
        error=None,
        state=None,
        session=None,
        steps=1,
        usage=Usage(),
    )
    return await score(spec, rollout, cast(VerifierContext, None), 60.0)


async def played(spec: EnvironmentSpec, task: Mapping[str, Any], rollout: str) -> float:
    """The scripted policy's try, with its tool call, and what it earned."""
    policy = cast(Policy, spec.policy)
    items = list(task["responses_create_params"]["input"])
    first = policy(PolicyRequest(items=items, tools=(), rollout=rollout, path="0"))
    call = cast(list[dict[str, Any]], first)[0]
    run = ToolRun(arguments=json.loads(call["arguments"]), idempotency_key=rollout)
    output = {"type": "function_call_output", "output": await spec.tools["python"].run(run)}
    items += [call, output]
    last = policy(PolicyRequest(items=items, tools=(), rollout=rollout, path="1"))
    return await reward(spec, task, str(last))


async def test_the_scripted_policy_has_mixed_and_repeatable_outcomes(spec: EnvironmentSpec) -> None:
    async def all_of(run: str) -> list[float]:
        async with asyncio.TaskGroup() as group:
            tries = [
                group.create_task(played(spec, task, f"{run}/{n}/0"))
                for n, task in enumerate(TASKS)
            ]
        return [one.result() for one in tries]

    rewards = await all_of("first")
    assert len(TASKS) >= 12
    assert {0.0, 1.0} == set(rewards)
    assert await all_of("second") == rewards


async def test_half_a_solution_earns_nothing(spec: EnvironmentSpec) -> None:
    task = next(task for task in TASKS if task["function"] == "roman")
    half = "```python\ndef roman(n): return {1: 'I', 4: 'IV'}[n]\n```"
    assert await reward(spec, task, half) == 0.0
    assert await reward(spec, task, "I would use a table.") == 0.0


@pytest.mark.parametrize("code", ["raise SystemExit", "import os; os._exit(0)"])
async def test_a_cheat_earns_nothing(spec: EnvironmentSpec, code: str) -> None:
    assert await reward(spec, TASKS[0], f"```python\n{code}\n```") == 0.0


ADDS = "def add_digits(n): return sum(map(int, str(abs(n))))"
#: What a solution does, and what it earns: the tests' verdict is the truth.
TRUTH = {
    "prints besides": (f"print('hello')\n{ADDS}\nprint(add_digits(12), '0 of 4 passed')", 1.0),
    "reads its standard input": (f"import sys\nsys.stdin.read()\n{ADDS}", 1.0),
    "defines it twice": (f"def add_digits(n): return 0\n{ADDS}", 1.0),
    "returns a whole float": (ADDS.replace("sum(", "1.0 * sum("), 1.0),
    "is wrong below zero only": (ADDS.replace("abs(n)", "n"), 0.0),
    "is off by one": (f"{ADDS} + 1", 0.0),
    "returns text": (ADDS.replace("sum(map(int, str(abs(n))))", "str(sum(map(int, str(n))))"), 0.0),
    "prints instead of returning": (ADDS.replace("return ", "print(") + ")", 0.0),
    "has another name": (ADDS.replace("add_digits", "addDigits"), 0.0),
    "takes no argument": (ADDS.replace("(n):", "():"), 0.0),
    "has a syntax error": (ADDS.replace(":", ""), 0.0),
    "breaks when loaded": (f"{ADDS}\n1 / 0", 0.0),
    "raises": ("def add_digits(n): raise ValueError(n)", 0.0),
    "recurses for ever": ("def add_digits(n): return add_digits(n)", 0.0),
    "never returns": ("def add_digits(n):\n    while True: pass", 0.0),
    "exits": ("import sys\ndef add_digits(n): sys.exit(0)", 0.0),
    "is a coroutine": (f"async {ADDS}", 0.0),
    "is indented by tabs": (ADDS.replace(" return", "\n\treturn"), 1.0),
}


@pytest.mark.parametrize(("code", "earned"), TRUTH.values(), ids=TRUTH)
async def test_the_reward_is_the_ground_truth(
    spec: EnvironmentSpec, code: str, earned: float
) -> None:
    task = next(task for task in TASKS if task["function"] == "add_digits")
    assert (await verdict(spec, task, f"Here:\n```python\n{code}\n```")).reward == earned


async def test_tests_that_are_broken_are_null_and_not_the_solutions_fault(
    spec: EnvironmentSpec,
) -> None:
    task = {"function": "add_digits", "cases": []}
    told = await verdict(spec, task, f"```python\n{ADDS}\n```")
    assert told.reward is None
    assert told.error is not None
    assert "no tests" in told.error.message


RIGHT = {
    "add_digits": "def add_digits(n): return sum(int(d) for d in str(abs(n)))",
    "is_palindrome": """
import re
def is_palindrome(text):
    text = re.sub('[^a-z0-9]', '', text.lower())
    return text == text[::-1]""",
    "fibonacci": """
from functools import cache
@cache
def fibonacci(n): return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)""",
    "unique": "def unique(items): return [x for i, x in enumerate(items) if x not in items[:i]]",
    "count_words": """
def count_words(text):
    counts = {}
    for word in text.lower().split(): counts[word] = counts.get(word, 0) + 1
    return counts""",
    "balanced": """
def balanced(text):
    stack = []
    for c in text:
        if c in '([{': stack.append(')]}'['([{'.index(c)])
        elif c in ')]}' and (not stack or stack.pop() != c): return False
    return not stack""",
    "merge": "import heapq\ndef merge(a, b): return list(heapq.merge(a, b))",
    "roman": """
def roman(n):
    out = ''
    for value, sign in zip((1000, 900, 500, 400, 100, 90, 50, 40, 10, 9, 5, 4, 1),
                           'M CM D CD C XC L XL X IX V IV I'.split()):
        while n >= value: out, n = out + sign, n - value
    return out""",
    "primes": "def primes(n): return [p for p in range(2, n) if all(p % q for q in range(2, p))]",
    "transpose": """
def transpose(rows):
    return [[row[i] for row in rows] for i in range(len(rows[0]))] if rows else []""",
    "caesar": """
def caesar(text, shift):
    def moved(c):
        if not ('a' <= c.lower() <= 'z'): return c
        base = ord('a' if c.islower() else 'A')
        return chr((ord(c) - base + shift) % 26 + base)
    return ''.join(map(moved, text))""",
    "longest_run": """
from itertools import groupby
def longest_run(items): return max((len(list(g)) for _, g in groupby(items)), default=0)""",
}  # fmt: skip


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task["function"])
async def test_a_right_solution_of_each_task_earns_all(
    spec: EnvironmentSpec, task: Mapping[str, Any]
) -> None:
    text = task["responses_create_params"]["input"][0]["content"]
    assert re.search(rf"`{task['function']}\(", text)
    assert await reward(spec, task, f"```python\n{RIGHT[task['function']]}\n```") == 1.0


async def test_the_tools_tell_the_model_what_happened() -> None:
    assert await python("print(6 * 7)") == "42"
    assert "ZeroDivisionError" in await python("1 / 0")
    assert await shell("echo out; echo err >&2; exit 3") == "out\nerr\n[exit code 3]"


async def test_the_sandbox_is_left_only_on_demand() -> None:
    code = "import os; print(os.getppid())"
    limits = Limits(wall_s=20)
    inside = await run_code(code, limits=limits)
    with without_sandbox():
        outside = await run_code(code, limits=limits)
    again = await run_code(code, limits=limits)
    assert inside.stdout == again.stdout == b"1\n"
    assert int(outside.stdout) > 1
