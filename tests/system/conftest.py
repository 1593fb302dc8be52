"""What system tests share: one run of every shipped calculator task, several times over."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command import by_request, echo, provider
from tests.support.provider import FakeProvider

_TASKS = Path(__file__).parents[2] / "environments" / "tasks" / "calculator.jsonl"


@pytest.fixture
def model() -> Iterator[FakeProvider]:
    """A model server of this test's own that repeats the question."""
    with provider(by_request(echo)) as server:
        yield server


@pytest.fixture(scope="session")
def calculator_200(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 calculator tasks."""
    lines = _TASKS.read_text(encoding="utf-8").splitlines()
    path = tmp_path_factory.mktemp("tasks") / "calculator-200.jsonl"
    rows = [json.loads(lines[i % len(lines)]) | {"uuid": f"task-{i}"} for i in range(200)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def calculator_tasks() -> Path:
    """The shipped examples."""
    return _TASKS


@pytest.fixture(scope="session")
def moody() -> Path:
    """The environment in which everything goes wrong on request."""
    return Path(__file__).parent / "environments" / "moody.py"
