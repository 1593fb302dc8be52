"""Write a Python function: its hidden tests run in a sandbox that the solution can't reach."""

import json
import random
import re

from warren import (
    CallCase,
    Environment,
    Item,
    Limits,
    PolicyRequest,
    Rollout,
    message_text,
    python,
    run_tests,
)

env = Environment(
    "code",
    system_prompt="Write the function in Python. You can try it out with the tool. "
    "Then answer with the whole solution in one ```python block.",
    tasks="tasks/code.jsonl",
    sandboxed=True,
)
env.tool(effect="pure", timeout_s=30.0)(python)

BLOCK = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)```", re.DOTALL)
LIMITS = Limits(wall_s=10.0, cpu_s=10.0)


@env.reward
async def passes(rollout: Rollout) -> float:
    """1 if all hidden tests pass. Part of them is worth nothing: it would pay for special cases."""
    blocks = BLOCK.findall(rollout.answer)
    if not blocks:
        return 0.0
    name = rollout.task["function"]
    cases = [CallCase(name, args, expected) for args, expected in rollout.task["cases"]]
    report = await run_tests(blocks[-1], cases, LIMITS)
    return float(report.ok)


SOLUTIONS = {
    "add_digits": "    return sum(map(int, str(abs(n))))",
    "is_palindrome": "    t = [c for c in text.lower() if c.isalnum()]\n    return t == t[::-1]",
    "fibonacci": "    a, b = 0, 1\n    for _ in range(n):\n        a, b = b, a + b\n    return a",
    "unique": "    return list(dict.fromkeys(items))",
    "count_words": "    from collections import Counter\n    return Counter(text.lower().split())",
    "balanced": "    s = ''.join(c for c in text if c in '()[]{}')\n    for _ in text:\n"
    "        s = s.replace('()', '').replace('[]', '').replace('{}', '')\n    return not s",
    "merge": "    return sorted(a + b)",
    "primes": "    return [p for p in range(2, n) if all(p % d for d in range(2, p))]",
    "transpose": "    return [list(row) for row in zip(*rows)]",
}


@env.policy
def scripted(request: PolicyRequest) -> list[Item] | str:
    """Tries its function out, then answers; by task and repeat it is wrong, or worse."""
    luck = random.Random(request.rollout.partition("/")[2]).random()  # the same in every run
    text = " ".join(message_text(item) for item in request.items if item.get("role") == "user")
    name, arguments = (re.findall(r"`(\w+)\((.*?)\)", text) or [("solve", "")])[0]
    code = f"def {name}({arguments}):\n{SOLUTIONS.get(name, '    return None')}\n"
    if not any(item.get("type") == "function_call_output" for item in request.items):
        trial = {"code": f"{code}print({name})"}
        call = {"type": "function_call", "name": "python", "call_id": "call_0"}
        return [call | {"arguments": json.dumps(trial)}]
    if luck < 0.15:
        code = "print('4 of 4 passed')\nimport os\nos._exit(0)\n"  # the tests aren't impressed
    elif luck < 0.3:
        code = f"def {name}({arguments}):\n    return 0\n"
    return f"Here it is:\n```python\n{code}```"
