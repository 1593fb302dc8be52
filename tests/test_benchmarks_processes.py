"""What the benchmarks measure of a process is its own."""

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.processes import start

_MB = 1_000_000
#: It holds 30 MB until a file is there.
_HOLDS = """
import pathlib, sys, time
held = bytearray(b"x") * 30_000_000
while not pathlib.Path(sys.argv[1]).exists():
    time.sleep(0.01)
"""


def test_a_process_has_its_own_peak_and_not_that_of_who_started_it(tmp_path: Path) -> None:
    ours = bytearray(b"x") * (200 * _MB)
    seen = tmp_path / "seen"
    held = start("collect", [sys.executable, "-c", _HOLDS, str(seen)], tmp_path / "log")
    try:
        with ThreadPoolExecutor(1) as pool:
            ended = pool.submit(held.wait)
            deadline = time.monotonic() + 30
            while held.peak_bytes < 30 * _MB and time.monotonic() < deadline:
                time.sleep(0.01)
            seen.touch()
            assert ended.result() == 0
    finally:
        held.end()
    assert len(ours) > held.peak_bytes > 30 * _MB
