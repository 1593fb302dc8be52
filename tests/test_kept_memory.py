"""Memory that was freed is kept: page faults are counted in a process of its own."""

import subprocess
import sys

COUNTING = """
import ctypes, resource
from warren.kept_memory import keep_freed_memory

def made_and_dropped(rounds):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        [bytearray(400_000) for _ in range(8)]
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / rounds

keep_freed_memory()
made_and_dropped(2)
faults = made_and_dropped(100)
glibc = hasattr(ctypes.CDLL(None), "mallopt")  # others are left as they are
assert faults < 20 or not glibc, f"{faults} page faults per round, of 800 pages"
"""


def test_large_blocks_that_are_made_and_dropped_again_and_again_are_the_same_memory() -> None:
    subprocess.run([sys.executable, "-c", COUNTING], check=True, timeout=60)
