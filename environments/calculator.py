"""Multi-step word problems with a calculator: the answer must be the right number."""

import ast
import json
import operator
import random
import re

from warren import Environment, Item, PolicyRequest, Rollout, message_text

env = Environment(
    "calculator",
    system_prompt="Solve it with the calculator, step by step; then answer with the number alone.",
    tasks="tasks/calculator.jsonl",
)

NUMBER = r"-?\d+(?:\.\d+)?"
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}
OPERATORS |= {ast.Div: operator.truediv, ast.Mod: operator.mod, ast.Pow: operator.pow}


@env.tool(effect="pure")
async def calculator(expression: str) -> float:
    """Work out an arithmetic expression.

    Args:
        expression: numbers, + - * / % ** and parentheses, for example `(3 + 4) * 2`
    """
    if len(expression) > 200:
        raise ValueError("the expression is longer than 200 characters")
    return value(ast.parse(expression.strip(), mode="eval").body)


def value(node: ast.AST) -> float:
    """Never `eval`: model output is hostile, and `9**9**9` would run for ever."""
    match node:
        case ast.Constant(value=int() | float() as number):
            result: float = number
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            result = -value(operand)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            a, b = value(left), value(right)
            if isinstance(op, ast.Pow) and (abs(b) > 64 or (a < 0 and b % 1)):
                raise ValueError("this power is out of range")
            result = OPERATORS[type(op)](a, b)
        case _:
            raise ValueError("only numbers, + - * / % ** and parentheses are allowed")
    if not abs(result) <= 1e15:
        raise ValueError("a number is too large")
    return result


@env.reward
def correct(rollout: Rollout) -> float:
    numbers = re.findall(NUMBER, rollout.answer.replace(",", ""))
    said, expected = float(["nan", *numbers][-1]), float(rollout.task["expected_answer"])
    return float(abs(said - expected) <= 1e-6 * abs(expected))


SIGNS = {"gets": "+", "loses": "-", "grows by a factor of": "*", "shared among": "/"}
STEP = re.compile(rf"(starts with|{'|'.join(SIGNS)}) ({NUMBER})")
EXPRESSION = re.compile(r"[\d(][\d\s.+*/%()-]*[\d)]")


@env.policy
def scripted(request: PolicyRequest) -> list[Item] | str:
    """Takes one step of the story per call; by task and repeat, some go wrong."""
    luck = random.Random(request.rollout.partition("/")[2]).random()  # the same in every run
    text = " ".join(message_text(item) for item in request.items if item.get("role") == "user")
    outputs = [i["output"] for i in request.items if i.get("type") == "function_call_output"]
    results = [output for output in outputs if re.fullmatch(NUMBER, output)]
    start, *steps = STEP.findall(text) or [("", [*EXPRESSION.findall(text), "0"][0]), ("", "")]
    if len(results) < len(steps) and len(outputs) < len(steps) + 2:
        verb, number = steps[len(results)]
        expression = f"{[start[1], *results][-1]} {SIGNS.get(verb, '')} {number}"
        key = "formula" if luck > 0.85 and not outputs else "expression"  # a bad argument
        call = {"type": "function_call", "name": "calculator", "call_id": f"call_{len(outputs)}"}
        return [call | {"arguments": json.dumps({key: expression})}]
    return str(float([start[1], *results][-1]) + (luck < 0.25)) if results else "I don't know."
