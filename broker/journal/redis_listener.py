"""What is published to one channel of Redis, heard over a connection of its own.

What is published while that connection is lost is lost too, so whoever listens is told once it is
mended. It is only ever a hint: nobody waits for this connection, and who may not have it goes on
without.
"""

import asyncio
import logging
import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from broker.journal.redis_link import SILENCE_S, Address, Link, LinkLost, Refusal
from broker.masking import mask_url

log = logging.getLogger(__name__)

#: A lost connection is made anew after at most this long ...
_RETRY_S: Final = 2.0
#: ... and one that is refused is asked for again this much later: permissions change.
_REFUSED_RETRY_S: Final = 60.0
_ADVICE: Final = "ACL SETUSER <user> +subscribe +publish &warren:inbox:*"


async def listen(
    address: Address, channel: str, hear: Callable[[bytes], None], missed: Callable[[], None]
) -> None:
    """Hear what is published there until cancelled; `missed` is called after each loss is mended.

    Losses and refusals are logged, once each.
    """
    listener = _Listener(address, channel, hear, missed)
    while True:
        await listener.once()


class _Listener:
    def __init__(
        self,
        address: Address,
        channel: str,
        hear: Callable[[bytes], None],
        missed: Callable[[], None],
    ) -> None:
        self._address = address
        self._channel = channel
        self._hear = hear
        self._missed = missed
        self._delay_s = 0.0
        self._lost = False
        self._refused = False

    async def once(self) -> None:
        """Listen until that is over, then wait until it is time to try again."""
        await asyncio.sleep(await self._listen())

    async def _listen(self) -> float:
        ear = _Ear(self._hear)
        try:
            await self._address.connect(ear)
            await ear.send(("SUBSCRIBE", self._channel))
            self._subscribed()
            return self._after(await ear.end())
        except LinkLost as e:
            return self._after(e)
        except Refusal as e:
            return self._after_refusal(e) if e.code == "NOPERM" else self._after(e)
        finally:
            ear.close()

    def _subscribed(self) -> None:
        if self._lost:
            self._missed()
        self._lost = self._refused = False
        self._delay_s = 0.0

    def _after(self, why: LinkLost | Refusal) -> float:
        if not self._lost:
            log.warning("replies through Redis are lost", extra={"error": mask_url(str(why))})
        self._lost = True
        self._delay_s = min(max(2 * self._delay_s, 0.05), _RETRY_S)
        return random.uniform(0.5, 1.0) * self._delay_s

    def _after_refusal(self, why: Refusal) -> float:
        if not self._refused:
            log.warning(
                "Redis does not permit replies: they go through the broker",
                extra={"error": mask_url(str(why)), "permit_with": _ADVICE},
            )
        self._refused = True
        return _REFUSED_RETRY_S


class _Ear(Link):
    """A connection that hears of what nobody asked for."""

    def __init__(self, hear: Callable[[bytes], None]) -> None:
        super().__init__()
        self._hear = hear
        self._gone = asyncio.Event()

    async def end(self) -> LinkLost:
        """Wait until it is lost; why it is. From time to time it is asked whether it lives."""
        while self.lost is None:
            try:
                async with asyncio.timeout(SILENCE_S):
                    await self._gone.wait()
            except TimeoutError:
                with suppress(Refusal):  # a sign of life, too
                    await self.send(("PING",))
        return self.lost

    def _answer(self, reply: Any) -> None:
        match reply:
            case [b"message", _, payload]:
                self._hear(payload)
            case _:
                super()._answer(reply)

    def _lose(self, why: LinkLost) -> None:
        super()._lose(why)
        self._gone.set()


__all__ = ["listen"]
