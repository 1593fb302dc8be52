"""`python -m warren.child [--unsafe-no-sandbox] REFERENCE SOCKET`: where isolated user code runs.

Started by workers (workers/isolation.py). Says `ready`, or why it can't, on standard output;
afterwards what user code prints goes to standard error.
"""

import os
import sys
from contextlib import AbstractContextManager, nullcontext

from broker.errors import WarrenError
from warren.blocking import warning
from warren.loading import load_environment
from warren.sandboxing import without_sandbox
from warren.settings import block_limit_s
from workers.isolation_server import main as serve
from workers.tool import isolated as tools
from workers.verifier import isolated as rewards
from workers.watchdog import watch_loop

#: Given where the worker itself was started with this flag.
UNSAFE = "--unsafe-no-sandbox"


def main(*words: str) -> int:
    """Load the environment and serve its jobs. The exit status."""
    *flags, reference, path = words
    ready_fd = os.dup(1)
    os.dup2(2, 1)
    try:
        spec = load_environment(reference).spec()
    except WarrenError as e:
        os.write(ready_fd, str(e).encode())
        return 2
    handlers = {tools.KIND: tools.handler(spec), rewards.KIND: rewards.handler(spec)}
    with without_sandbox() if UNSAFE in flags else nullcontext():
        serve(handlers, path, ready_fd, _watching)
    return 0


def _watching() -> AbstractContextManager[None]:
    return watch_loop(block_limit_s(), on_blocked=warning, hard=False)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
