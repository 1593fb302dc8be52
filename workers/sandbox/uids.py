"""One unused uid per sandbox of a root worker: process limits count by uid, and never bind root."""

import os
import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from workers.sandbox.limits import SandboxError

_TRIES: Final = 1000


@contextmanager
def reserved_uid(uids: range) -> Iterator[int | None]:
    """A uid that no other sandbox of this machine has, until the block ends or we die.

    None when there are none to give, because we aren't root. An abstract socket's name
    is the lock: the kernel lets go of it when its holder is gone.
    """
    if not uids:
        yield None
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as lock:
        yield _take(lock, uids)


def _take(lock: socket.socket, uids: range) -> int:
    for _ in range(_TRIES):
        uid = random.choice(uids)
        try:
            lock.bind(f"\0warren-sandbox-uid-{uid}")
        except OSError:
            continue
        return uid
    raise SandboxError(f"no free uid among {len(uids)} for a sandbox of process {os.getpid()}")
