"""Places where a test may kill a process, between two steps whose order is a promise.

A process that is not armed (all but those of fault tests) pays one dictionary lookup per place.
"""

import os
from typing import Final

_EXIT_LIKE_KILL: Final = 137
#: Hits left by place. Armed at most once, at the start of a process, by the command line.
_armed: Final[dict[str, int]] = {}


def arm(spec: str) -> None:
    """Die at the n-th hit of a place: `name:n`, or `name` for the first. Empty arms nothing."""
    name, _, count = spec.partition(":")
    if name:
        _armed[name] = int(count or 1)


def crash_at(name: str) -> None:
    """Die here, as by kill -9, if that is what this process was started for."""
    if name in _armed:
        _armed[name] -= 1
        if not _armed[name]:
            os._exit(_EXIT_LIKE_KILL)
