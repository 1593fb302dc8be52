"""Code of the user's that ends its process, or never returns, costs its own rollout only."""

import pytest

from tests.support.cluster import Cluster


@pytest.mark.timeout(300)
def test_code_that_ends_its_process_costs_its_own_rollout(warren: Cluster) -> None:
    warren.supervise()
    run = warren.enqueue(24, game="poison")
    run.check(200, failed={3: "agent"}, unscored={11, 13})
