"""What is stored is promised by memory, SQLite and Redis alike: tests with `kind` run on each."""

import pytest

from tests.support.journals import KINDS, Kind


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


@pytest.fixture
def redis_url(kind: Kind, request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue("redis_server").url) if kind == "redis" else ""
