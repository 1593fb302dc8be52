"""Servers for the tests: one shared RabbitMQ and Redis, and one of each that tests may kill."""

import os
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import hypothesis
import pytest

from broker.memory import MemoryBroker
from broker.rabbitmq import RabbitBroker
from tests.support import services

# How long an example takes is the machine's business; speed lives in `make bench`.
# The same examples in every run, so that what lands is what was tested; WARREN_EXAMPLES explores.
hypothesis.settings.register_profile(
    "warren", deadline=None, derandomize="WARREN_EXAMPLES" not in os.environ
)
hypothesis.settings.load_profile("warren")


class Given:
    """A server that the user named: tests use it and never stop it."""

    def __init__(self, url: str) -> None:
        self.url = url


class Names:
    """Names that no other test uses, so that tests can share a server."""

    def __init__(self) -> None:
        self._word = uuid.uuid4().hex[:10]
        self.environment = f"env-{self._word}"
        self.run = f"run-{self._word}"

    def new(self, what: str) -> str:
        """Another one."""
        return f"{what}-{uuid.uuid4().hex[:10]}"


@pytest.fixture
def fresh_names() -> Names:
    return Names()


@pytest.fixture(scope="session")
def rabbitmq(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[services.RabbitProcess | services.Container | Given]:
    """The RabbitMQ that all tests share. Use names of your own; leave it running."""
    if url := os.environ.get("WARREN_TEST_BROKER"):
        yield Given(url)
        return
    node = services.new_rabbitmq(tmp_path_factory.mktemp("rabbitmq") / "node")
    try:
        node.start()
        yield node
    finally:
        node.remove()


@pytest.fixture(scope="session")
def redis_server(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[services.RedisProcess | services.Container | Given]:
    """The Redis that all tests share. Use names of your own; leave it running."""
    if url := os.environ.get("WARREN_TEST_REDIS"):
        yield Given(url)
        return
    server = services.new_redis(tmp_path_factory.mktemp("redis") / "server")
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture(scope="session")
def _killable_rabbitmq(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[services.RabbitProcess | services.Container]:
    node = services.new_rabbitmq(tmp_path_factory.mktemp("killable") / "node")
    try:
        node.start()
        yield node
    finally:
        node.remove()


@pytest.fixture
def killable_rabbitmq(
    _killable_rabbitmq: services.RabbitProcess | services.Container,
) -> services.RabbitProcess | services.Container:
    """A RabbitMQ that this test may kill, stop and starve; running when the test begins."""
    if not services.speaks_amqp(_killable_rabbitmq.port):
        _killable_rabbitmq.restart()
    return _killable_rabbitmq


@pytest.fixture
def killable_redis(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[services.RedisProcess | services.Container]:
    """A Redis of this test's own, to kill, stop and empty."""
    server = services.new_redis(tmp_path_factory.mktemp("redis") / "server")
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture(params=["memory", "rabbitmq"])
def broker_kind(request: pytest.FixtureRequest) -> str:
    """Every transport keeps the same promises: tests that use this run once on each."""
    kind: str = request.param
    return kind


@pytest.fixture
async def make_broker(
    broker_kind: str, request: pytest.FixtureRequest
) -> AsyncIterator[Callable[[], Awaitable[MemoryBroker | RabbitBroker]]]:
    """Makes connections to one broker, as several processes have them; closes them at the end."""
    made: list[MemoryBroker | RabbitBroker] = []
    url = request.getfixturevalue("rabbitmq").url if broker_kind == "rabbitmq" else ""

    async def make() -> MemoryBroker | RabbitBroker:
        if broker_kind == "rabbitmq":
            made.append(await RabbitBroker.connect(url))
        else:
            first = made[0] if made else None
            made.append(first.connect() if isinstance(first, MemoryBroker) else MemoryBroker())
        return made[-1]

    yield make
    for broker in made:
        await broker.close()
