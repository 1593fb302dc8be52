"""`python -m warren.child REFERENCE SOCKET`: the process that isolated tools and rewards run under.

Started by workers (workers/isolation.py). Says `ready`, or why it can't, on standard output;
afterwards what user code prints goes to standard error.
"""

import os
import sys
from contextlib import nullcontext

from broker.errors import WarrenError
from warren.loading import load_environment
from warren.sandbox import without_sandbox
from workers.isolation_server import main as serve
from workers.tool import isolated as tools
from workers.verifier import isolated as rewards

#: After the socket, where the worker itself was started with this flag.
UNSAFE = "--unsafe-no-sandbox"


def main(reference: str, path: str, *flags: str) -> int:
    """Load the environment and serve its jobs. The exit status."""
    ready_fd = os.dup(1)
    os.dup2(2, 1)
    try:
        spec = load_environment(reference).spec()
    except WarrenError as e:
        os.write(ready_fd, str(e).encode())
        return 2
    handlers = {tools.KIND: tools.handler(spec), rewards.KIND: rewards.handler(spec)}
    with without_sandbox() if UNSAFE in flags else nullcontext():
        serve(handlers, path, ready_fd)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
