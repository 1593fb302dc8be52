"""Commands to one Redis, repeated until they are answered: for journal, runs and what is shared.

While Redis is away (lost, loading, read-only, stalled) every command is tried again for a while;
each may be repeated safely when its reply was lost.
"""

import asyncio
import hashlib
import random
import time
from collections.abc import Coroutine, Iterable, Sequence
from importlib import resources
from typing import Any, Final

from broker.deadlines import within
from broker.errors import JournalUnavailable, Unreachable
from broker.journal.redis_link import SILENCE_S, Address, Link, LinkLost, Refusal
from broker.masking import mask_url

#: A command is tried again for this long before JournalUnavailable is raised.
PATIENCE_S: Final = 60.0

#: How the errors begin with which Redis refuses us for good.
_REFUSED: Final = (
    "NOAUTH",
    "NOPERM",
    "WRONGPASS",
    "ERR AUTH",
    "ERR Client sent AUTH",
    "ERR invalid password",
)
#: How those begin that pass.
_PASSING: Final = (
    "BUSY",
    "CLUSTERDOWN",
    "LOADING",
    "MASTERDOWN",
    "MISCONF",
    "OOM",
    "READONLY",
    "TRYAGAIN",
)
_CLOSED: Final = "the journal is closed"
#: One script call marks or tombstones this many at most: Redis does nothing else meanwhile.
_CHUNK: Final = 2000


class Script:
    """A Lua script, of one file or several in this order, with the name that Redis knows it by."""

    def __init__(self, *files: str, package: str = "broker.journal") -> None:
        folder = resources.files(package) / "lua"
        self.text = b"".join((folder / file).read_bytes() for file in files)
        self.sha = hashlib.sha1(self.text, usedforsecurity=False).hexdigest()


class Client:
    """One connection at a time, made anew when it is lost."""

    def __init__(self, url: str, patience_s: float) -> None:
        """Raises ValueError for what is no URL of a Redis."""
        self.url = mask_url(url)
        self._patience_s = patience_s
        self.address = Address(url)
        self._link: Link | None = None
        self._opening: asyncio.Task[Link] | None = None
        self._closed = False

    @classmethod
    async def connect(cls, url: str, patience_s: float) -> "Client":
        """Waits for one that loads. Raises Unreachable where nobody answers or we are refused."""
        try:
            client = cls(url, patience_s)
        except ValueError as e:
            wrong = mask_url(str(e))
            hint = f"{mask_url(url)} ({wrong}; redis://host:6379/0)"
            raise Unreachable(f"not a Redis URL: {hint}") from e
        try:
            await client._greet()
        except (LinkLost, Refusal, JournalUnavailable) as e:
            await client.close()
            raise client._unreachable(e) from e
        except BaseException:
            await client.close()
            raise
        return client

    async def _greet(self) -> None:
        try:
            await self._once(("PING",))
        except Refusal as e:
            self._check(e)
            await self.do("PING")

    def do(self, *command: Any) -> Coroutine[Any, Any, Any]:
        """The reply. Raises JournalUnavailable, Unreachable where Redis refuses us, Refusal."""
        return self._do(command)

    def run(self, script: Script, keys: Sequence[str], *args: Any) -> Coroutine[Any, Any, Any]:
        """The script's reply; it is sent whole where Redis has forgotten it."""
        return self._do(("EVALSHA", script.sha, len(keys), *keys, *args), script)

    async def _do(self, command: tuple[Any, ...], script: Script | None = None) -> Any:
        left_s = self._patience_s
        deadline = time.monotonic() + left_s
        delay_s = 0.05
        while True:
            link = self._link
            try:
                if link is not None and link.lost is None and left_s >= 2 * SILENCE_S:
                    return await link.send(command)  # nearly always: no layers between
                return await self._within(command, left_s)
            except (LinkLost, Refusal, TimeoutError) as e:
                if script is not None and isinstance(e, Refusal) and e.code == "NOSCRIPT":
                    command, script = ("EVAL", script.text, *command[2:]), None
                    continue
                self._check(e)
                if time.monotonic() + delay_s >= deadline:
                    raise JournalUnavailable(f"Redis at {self.url}: {_said(e)}") from e
            await asyncio.sleep(random.uniform(0.5, 1.0) * delay_s)
            delay_s = min(delay_s * 2, 2.0)
            left_s = deadline - time.monotonic()

    async def _within(self, command: tuple[Any, ...], left_s: float) -> Any:
        """Links end silence themselves; only a shorter patience than theirs needs a timer."""
        if left_s >= 2 * SILENCE_S:
            return await self._once(command)
        with within(max(0.05, left_s)):
            return await self._once(command)

    async def _once(self, command: tuple[Any, ...]) -> Any:
        if self._closed:
            raise JournalUnavailable(_CLOSED)
        link = self._link
        if link is None or link.lost is not None:
            link = await self._open()
        return await link.send(command)

    async def _open(self) -> Link:
        """One attempt for all who wait for it."""
        if self._opening is None:
            self._opening = asyncio.get_running_loop().create_task(self.address.open())
            self._opening.add_done_callback(self._opened)
        opening = self._opening
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if opening.cancelled() and task is not None and not task.cancelling():
                raise JournalUnavailable(_CLOSED) from None  # `close` ended it, not our caller
            raise

    def _opened(self, opening: "asyncio.Task[Link]") -> None:
        self._opening = None
        if opening.cancelled() or opening.exception() is not None:
            return
        self._link = opening.result()
        if self._closed:
            self._link.close()

    def _check(self, error: Exception) -> None:
        """Raise it unless it passes."""
        if self._closed:
            raise JournalUnavailable(_CLOSED) from error
        if not isinstance(error, Refusal):
            return
        if str(error).startswith(_REFUSED):
            raise self._unreachable(error) from error
        if not str(error).startswith(_PASSING):
            raise error

    def _unreachable(self, error: Exception) -> Unreachable:
        hint = (
            "check user and password in the URL"
            if str(error).startswith(_REFUSED)
            else "is it running, and is this its address? (redis-cli -u URL ping)"
        )
        return Unreachable(f"cannot use Redis at {self.url}: {_said(error)}; {hint}")

    async def close(self) -> None:
        """Let go of the connection; what was not answered yet raises JournalUnavailable."""
        self._closed = True
        opening = self._opening
        if opening is not None:
            opening.cancel()
            await asyncio.wait([opening])
        if self._link is not None:
            self._link.close()


def chunks(items: Sequence[Any]) -> Iterable[Sequence[Any]]:
    """As many as one script call may be about."""
    return (items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK))


def _said(error: Exception) -> str:
    return mask_url(str(error)) or "no answer"


__all__ = ["PATIENCE_S", "Client", "Script", "chunks"]
