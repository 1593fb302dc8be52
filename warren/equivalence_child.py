"""`python -m warren.equivalence_child FD`: forks a process for each comparison, with limits.

Started by `MathEquality`. Loads math-verify once and warms it up, so that a fork compares in some
milliseconds. FD is a socket that hands over one socket per comparison, and ends it when closed.
"""

import json
import logging
import os
import re
import resource
import signal
import socket
import sys
from typing import Final

#: Limits of one comparison; ordinary ones take milliseconds.
CPU_S: Final = 2
MEMORY_BYTES: Final = 2 * 1024**3

#: What could be an answer of its own.
_CANDIDATE: Final = re.compile(r"\d+(?:[.,]\d+)*|\\(?:pi|infty|emptyset)")
_WARM_UP: Final = (("\\frac{1}{2}", "0.5"), ("x^2+2x+1", "(x+1)^2"), ("(1,2)", "[1, 2)"))


def serve(control: socket.socket) -> None:
    """Fork for every socket that arrives, until there are no more."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps
    for said, expected in _WARM_UP:  # parsers and simplifiers load their tables at first use
        equal(said, expected)
    while fds := socket.recv_fds(control, 1, 1)[1]:
        if os.fork() == 0:
            control.close()
            _answer(fds[0])
            os._exit(0)
        os.close(fds[0])


def _answer(fd: int) -> None:
    """`r` for ready, then `1` or `0`; whoever a limit ends says no more."""
    with socket.socket(fileno=fd) as asker, asker.makefile("rb") as questions:
        said, expected, places = json.loads(questions.read())
        _limit()
        asker.sendall(b"r")
        asker.sendall(b"1" if equal(said, expected, places) else b"0")


def equal(said: str, expected: str, places: int = 6) -> bool:
    """Without the library's own timeouts: their signals don't reach loops inside C code.

    `places` after the point are compared where one of the two is a decimal number.
    """
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    ways = [LatexExtractionConfig(), ExprExtractionConfig()]
    # the second way takes the last number of what is no LaTeX: `2 \\star 3` would be 3
    allowed = ways[:1] if len(_CANDIDATE.findall(said)) > 1 else ways
    gold = parse(f"\\boxed{{{expected}}}", parsing_timeout=None)
    target = parse(f"\\boxed{{{said}}}", extraction_config=allowed, parsing_timeout=None)
    return bool(
        verify(
            gold,
            target,
            float_rounding=places,
            timeout_seconds=None,
            allow_set_relation_comp=True,  # `x < 3` is the interval, whichever was expected
        )
    )


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))  # a fork begins at 0
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    logging.disable()  # nobody reads them, and what they quote may be hostile
    serve(socket.socket(fileno=int(sys.argv[1])))
