"""Python in a process of its own, to be killed at a crash point or held to a limit."""

import subprocess
import sys


def run_python(code: str, *args: object, expect: int = 0) -> None:
    """Run `code` with these arguments; it must end with the exit code `expect`."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, args)], timeout=60, capture_output=True, text=True
    )
    assert done.returncode == expect, done.stderr
