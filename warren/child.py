"""`python -m warren.child REFERENCE SOCKET`: the process that isolated tool calls run under.

Started by tool workers (workers/tool/isolation.py). Says `ready`, or why it can't, on standard
output; afterwards what tools print goes to standard error.
"""

import os
import sys

from broker.errors import WarrenError
from warren.loading import load_environment
from workers.tool.forkserver import main as serve


def main(reference: str, path: str) -> int:
    """Load the environment and serve its calls. The exit status."""
    ready_fd = os.dup(1)
    os.dup2(2, 1)
    try:
        spec = load_environment(reference).spec()
    except WarrenError as e:
        os.write(ready_fd, str(e).encode())
        return 2
    serve(spec, path, ready_fd)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
