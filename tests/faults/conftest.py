"""One Warren of real processes that all fault tests of a session share; each leaves it whole."""

from collections.abc import Iterator

import pytest

from tests.support import services
from tests.support.cluster import Cluster, cluster


@pytest.fixture(scope="session")
def _own_redis(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[services.RedisProcess | services.Container]:
    server = services.new_redis(tmp_path_factory.mktemp("redis") / "server")
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture(scope="session")
def _own_cluster(
    tmp_path_factory: pytest.TempPathFactory,
    _killable_rabbitmq: services.RabbitProcess | services.Container,
    _own_redis: services.RedisProcess | services.Container,
) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("cluster"), _killable_rabbitmq, _own_redis) as made:
        yield made


@pytest.fixture
def warren(_own_cluster: Cluster) -> Iterator[Cluster]:
    """Two workers of each kind (one sink), all alive when the test begins."""
    if not services.speaks_amqp(_own_cluster.rabbitmq.port):
        _own_cluster.rabbitmq.restart()
    if not services.speaks_redis(_own_cluster.redis.port):
        _own_cluster.redis.restart()
    _own_cluster.restore()
    yield _own_cluster
    _own_cluster.settle()
