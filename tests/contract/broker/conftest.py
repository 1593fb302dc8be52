"""Tests here run once on each transport, with queues of their own."""

import pytest

from broker import topology
from broker.base import Broker
from broker.memory import MemoryBroker
from broker.rabbitmq import RabbitBroker
from broker.topology import QueueSpec
from tests.conftest import Names
from tests.support.queues import MakeBroker


@pytest.fixture
async def broker(make_broker: MakeBroker) -> MemoryBroker | RabbitBroker:
    return await make_broker()


@pytest.fixture
async def tools(broker: Broker, fresh_names: Names) -> QueueSpec:
    """A classic work queue of this test's own."""
    queue = topology.tool_queue(fresh_names.environment)
    await broker.declare([queue])
    return queue


@pytest.fixture
async def trajectories(broker: Broker, fresh_names: Names) -> QueueSpec:
    """A quorum work queue of this test's own."""
    queue = topology.verify_queue(fresh_names.environment)
    await broker.declare([queue])
    return queue
