"""Writes a working environment to start from: one file, its tasks, its tests."""

import keyword
import sys
from pathlib import Path
from typing import Final

from broker.errors import UsageError
from broker.names import is_name

#: What the tests beside the file import, or what that imports.
OURS: Final = frozenset({"warren", "broker", "workers", "producers", "sinks", "environments"})

_ENVIRONMENT: Final = '''"""Say here in one line what the policy must do."""

import json
import random
import re

from warren import Environment, Item, PolicyRequest, Rollout, message_text

env = Environment(
    "{name}",
    system_prompt="Use the tool to count, then answer with the number alone.",
    tasks="{file}_tasks.jsonl",
)


@env.tool(effect="pure")
def count_letter(word: str, letter: str) -> int:
    """How often a letter stands in a word.

    Args:
        word: any word
        letter: one letter, for example `r`
    """
    if len(letter) != 1:
        raise ValueError("`letter` must be one letter")  # the model is told, and can try again
    return word.lower().count(letter.lower())


@env.reward
def correct(rollout: Rollout) -> float:
    numbers = re.findall(r"\\d+", rollout.answer)
    return float(bool(numbers) and numbers[-1] == str(rollout.task["expected_answer"]))


@env.policy
def scripted(request: PolicyRequest) -> list[Item] | str:
    """Plays without a model, for `warren env test` and demos; some rollouts go wrong."""
    outputs = [i["output"] for i in request.items if i.get("type") == "function_call_output"]
    if outputs:
        luck = random.Random(request.rollout.partition("/")[2]).random()
        return str(int(outputs[-1]) + (luck < 0.25))
    question = message_text([i for i in request.items if i.get("role") == "user"][-1])
    letter, word = re.findall(r"`(\\w+)`", question)
    arguments = json.dumps({{"word": word, "letter": letter}})
    call = {{"type": "function_call", "name": "count_letter", "arguments": arguments}}
    return [call | {{"call_id": "call_0"}}]
'''

_TESTS: Final = '''"""Run with `pytest`; `warren env test {file}.py` looks deeper."""

from {file} import count_letter, env


def test_the_tool_counts() -> None:
    assert count_letter("Strawberry", "r") == 3


def test_the_parts_fit_together() -> None:
    spec = env.spec()
    assert list(spec.tools) == ["count_letter"]
    assert [reward.name for reward in spec.rewards] == ["correct"]
'''

_TASK: Final = (
    '{{"responses_create_params": {{"input": [{{"role": "user", "content": '
    '"How often does `{letter}` stand in `{word}`?"}}]}}, "expected_answer": "{count}"}}\n'
)
_WORDS: Final = ("strawberry", "bookkeeper", "warren", "rabbit", "trajectory", "banana")


def write_environment(name: str, directory: Path) -> list[Path]:
    """Write `<name>.py`, its tasks and its tests into `directory`. The files, the first is it.

    Raises UsageError where the name won't do or a file is there already.
    """
    if not is_name(name):
        raise UsageError(f"{name!r} can't name an environment; use 1 to 64 of a-z, 0-9, _ and -")
    file = name.replace("-", "_")
    if not file.isidentifier() or keyword.iskeyword(file):
        raise UsageError(f"{name!r} can't name a Python file; choose another, like my_{file}")
    if file in sys.stdlib_module_names | OURS:
        raise UsageError(f"{file}.py would hide Python's or Warren's {file!r}; choose another name")
    texts = {
        directory / f"{file}.py": _ENVIRONMENT.format(name=name, file=file),
        directory / f"{file}_tasks.jsonl": "".join(_task(word) for word in _WORDS),
        directory / f"test_{file}.py": _TESTS.format(file=file),
    }
    for path in texts:
        if path.exists():
            raise UsageError(f"{path} exists already; choose another name or directory")
    directory.mkdir(parents=True, exist_ok=True)
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")
    return list(texts)


def _task(word: str) -> str:
    letter = word[-1]
    return _TASK.format(letter=letter, word=word, count=word.count(letter))
