"""Open files: each request in flight is one, and shells often allow 1,024."""

import subprocess
import sys

import pytest

from tests.support.gateway import config, serving

LIMITED = """
import resource
from warren.cli import open_files
_, most = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (256, most))
assert open_files() == min(most, 65536)
assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == min(most, 65536)
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 300))
assert open_files() == 300, "what the system allows"
"""


def test_a_process_takes_as_many_as_it_may() -> None:
    subprocess.run([sys.executable, "-c", LIMITED], check=True, timeout=60)


async def test_a_gateway_that_may_open_too_few_says_so_and_what_to_do(
    caplog: pytest.LogCaptureFixture,
) -> None:
    many = 100_000_000
    async with serving(config("http://127.0.0.1:1/v1", max_concurrency=many), prefetch=many):
        pass
    assert "raise `ulimit -Hn`" in caplog.text
    caplog.clear()
    async with serving(config("http://127.0.0.1:1/v1", max_concurrency=8), prefetch=many):
        pass
    assert "ulimit" not in caplog.text
