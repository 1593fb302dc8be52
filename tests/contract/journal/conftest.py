"""Tests here run once over each journal: memory, SQLite, Redis."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from broker.journal.base import Journal
from tests.support.journals import KINDS, Kind, new_key, opened_journal


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


@pytest.fixture
def redis_url(kind: Kind, request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue("redis_server").url) if kind == "redis" else ""


@pytest.fixture
async def journal(kind: Kind, tmp_path: Path, redis_url: str) -> AsyncIterator[Journal]:
    async with opened_journal(kind, tmp_path, redis_url) as journal:
        yield journal
        for inbox in ("a", "b", "new"):  # the store outlives the test
            await journal.end_lease(inbox)


@pytest.fixture
def key() -> str:
    return new_key()
