"""Rows that were durable once and that their output has lost since: their rollouts run again.

A line was torn by a crash of the host, or cut off by hand, after the journal had heard that it was
durable. To the journal its rollout is over, so nobody would run it again.
"""

import logging
from functools import partial

from broker.journal.patience import patiently
from broker.names import journal_key
from producers import bitmap
from producers.publisher import Id
from warren.connections import Connections
from warren.preparing import Collection

log = logging.getLogger(__name__)


async def forget_torn(at: Connections, collection: Collection) -> frozenset[Id]:
    """Have the journal forget them; which they are. Called before anything is published.

    With `--retry-failed` there is nothing to forget: its rollouts have records of their own.
    """
    if collection.attempt > 1:
        return frozenset()
    ids, record = collection.output.ids, collection.run.record
    torn: list[Id] = []
    for repeat in range(record.repeats):
        marked = await patiently(partial(at.runs.committed, record.run, record.generation, repeat))
        lost = bitmap.without(marked, ids.bitmap(repeat))
        torn += [(index, repeat) for index in bitmap.indices(lost)]
    if torn:
        log.warning("rows that were written are missing", extra={"rows": len(torn)})
        keys = [journal_key(record.run, record.generation, *id_) for id_ in torn]
        await patiently(lambda: at.journal.forget(keys))
    return frozenset(torn)
