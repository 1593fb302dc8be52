"""The journal that a test of its promises asks, and a rollout that no other test knows."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from broker.journal.base import Journal
from tests.support.journals import Kind, new_key, opened_journal


@pytest.fixture
async def journal(kind: Kind, tmp_path: Path, redis_url: str) -> AsyncIterator[Journal]:
    async with opened_journal(kind, tmp_path, redis_url) as journal:
        yield journal
        for inbox in ("a", "b", "new"):  # the store outlives the test
            await journal.end_lease(inbox)


@pytest.fixture
def key() -> str:
    return new_key()
