"""Free ports on 127.0.0.1."""

import contextlib
import secrets
import socket
from typing import Final

#: Below those that systems give to outgoing connections (32768 and up on Linux): one of these would
#: take the port before its server listens, or while that is down.
_FIRST: Final = 10_000
_LAST: Final = 32_767


def free_port() -> int:
    """A TCP port that nobody listens on right now."""
    while True:
        port = _FIRST + secrets.randbelow(_LAST - _FIRST + 1)
        with contextlib.suppress(OSError), socket.socket() as listener:
            listener.bind(("127.0.0.1", port))
            return port
