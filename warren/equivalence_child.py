"""The process in which `math_equal` compares: limits first, then what may be hostile."""

import logging
import resource
from multiprocessing.connection import Connection
from typing import Final

_CPU_S: Final = 4
_MEMORY_BYTES: Final = 2 * 1024**3


def compare(send: Connection, said: str, expected: str) -> None:
    """Say True once the library is there, then whether the two are equal."""
    import math_verify

    logging.getLogger(math_verify.__name__).setLevel(logging.ERROR)
    _limit()
    send.send(True)
    send.send(equal(said, expected))


def equal(said: str, expected: str) -> bool:
    """Unlimited: math-verify's own timeouts are off, since they miss loops inside C code."""
    from math_verify import parse, verify

    gold, target = (parse(f"\\boxed{{{text}}}", parsing_timeout=None) for text in (expected, said))
    return bool(verify(gold, target, timeout_seconds=None))


def _limit() -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    until = int(used.ru_utime + used.ru_stime) + 1 + _CPU_S
    resource.setrlimit(resource.RLIMIT_CPU, (until, until))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
