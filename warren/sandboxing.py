"""Whether what runs here confines model-written code; warren/sandbox.py is what runs it.

Light to import, since every command asks; the sandbox itself is loaded where there is use for it.
"""

import logging
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from typing import Final

from broker.errors import UsageError

log = logging.getLogger(__name__)

_unsafe: Final[ContextVar[bool]] = ContextVar("without_sandbox", default=False)


async def unavailable() -> str | None:
    """Why there can be no sandbox on this machine, and how to get one; None where there can."""
    if is_unsafe():
        return None
    from workers import sandbox

    found = await sandbox.probe()
    if isinstance(found, sandbox.Unavailable):
        return f"no sandbox: {found.reason}; {found.how_to_get_it}"
    return None


@asynccontextmanager
async def sandboxed(names: Iterable[str], *, unsafe: bool) -> AsyncGenerator[None, None]:
    """What serves these environments, which run model-written code, runs inside of this block.

    Raises UsageError where there can be no sandbox, unless the user said `--unsafe-no-sandbox`.
    """
    affected = ", ".join(sorted(names))
    if affected and unsafe:
        log.warning("running model-written code WITHOUT a sandbox", extra={"envs": affected})
        with without_sandbox():
            yield
        return
    why = await unavailable() if affected else None
    if why is not None:
        raise UsageError(f"environment {affected} runs model-written code, but there is {why}")
    yield


@contextmanager
def without_sandbox() -> Iterator[None]:
    """`--unsafe-no-sandbox`: what starts inside of this block runs code with all our rights."""
    token = _unsafe.set(True)
    try:
        yield
    finally:
        _unsafe.reset(token)


def is_unsafe() -> bool:
    """Whether what runs here runs model-written code without a sandbox."""
    return _unsafe.get()


__all__ = ["is_unsafe", "sandboxed", "unavailable", "without_sandbox"]
