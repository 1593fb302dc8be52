"""What a process that stops still says to broker and store: briefly, since they may be away.

Whatever it is, it also happens without us, only later: leases run out, queues of nobody expire.
"""

from collections.abc import Awaitable
from contextlib import suppress
from typing import Final

from broker.deadlines import within
from broker.errors import BrokerError, JournalUnavailable

#: What each such step may cost.
PARTING_S: Final = 1.0


async def parting(step: Awaitable[object]) -> bool:
    """Whether it was done, within PARTING_S."""
    with suppress(TimeoutError, JournalUnavailable, BrokerError), within(PARTING_S):
        await step
        return True
    return False
