"""Every test of the sandbox has bubblewrap, and leaves nothing on this machine."""

import os
from collections.abc import Iterator

import pytest

from tests.support import sandboxes


@pytest.fixture(scope="session", autouse=True)
def bubblewrap() -> None:
    sandboxes.install_bubblewrap()


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """No descriptor, no zombie, no temporary directory of any test's sandboxes remains."""
    before = len(os.listdir("/proc/self/fd")), set(os.listdir("/tmp"))
    yield
    assert sandboxes.zombies() == []
    assert len(os.listdir("/proc/self/fd")) <= before[0] + 4  # the test's own event loop
    left = set(os.listdir("/tmp")) - before[1]
    assert not [name for name in left if name.startswith(("warren-unsafe-", "warren-sandbox"))]
