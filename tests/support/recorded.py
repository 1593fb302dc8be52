"""Which model calls a journal has finished, read from its store while the one who wrote is dead.

The layout is the store's own: broker/journal/lua/common.lua and broker/journal/sqlite_table.py.
"""

import re
import sqlite3
from collections.abc import Generator
from pathlib import Path
from typing import Final, NamedTuple

import redis

from tests.support.model_server import Step

_KEY: Final = re.compile(
    r"(?:warren:\{)?(?P<run>[\w-]+)\.\w+/(?P<task>\d+)/\d+(?:@\d+)?\}?(?P<verify>/verify)?"
)


class _Rollout(NamedTuple):
    run: str
    task: int


class Recorded:
    """What was finished at one moment."""

    def __init__(self) -> None:
        self._steps: set[Step] = set()
        self._committed: set[_Rollout] = set()

    def __contains__(self, step: Step) -> bool:
        return step in self._steps or _Rollout(step[0], step[1]) in self._committed

    def add(self, key: str, path: str) -> None:
        """A call of this record is finished."""
        found = _KEY.fullmatch(key)
        assert found, key
        what = f"judge {path.removeprefix('verify.')}" if found["verify"] else f"step {path}"
        self._steps.add((found["run"], int(found["task"]), what))

    def commit(self, key: str) -> None:
        """The row of this record is durable."""
        found = _KEY.fullmatch(key)
        assert found, key
        self._committed.add(_Rollout(found["run"], int(found["task"])))


def recorded_in_redis(url: str, run: str) -> Recorded:
    """All rollouts of this run."""
    recorded = Recorded()
    with redis.Redis.from_url(url) as client:
        keys = list(client.scan_iter(f"warren:{{{run}.*", count=10_000))
        for at in range(0, len(keys), 1000):
            pipeline = client.pipeline(transaction=False)
            for key in keys[at : at + 1000]:
                pipeline.hkeys(key)
                pipeline.hget(key, "phase")
            answers = pipeline.execute()
            for key, fields, phase in zip(keys[at:], answers[::2], answers[1::2], strict=False):
                if phase == b"committed":
                    recorded.commit(key.decode())
                for field in fields:
                    if field.startswith(b"result:"):
                        recorded.add(key.decode(), field.decode().removeprefix("result:"))
    return recorded


def recorded_in_sqlite(path: Path) -> Recorded:
    """All rollouts of an embedded collector that is dead."""
    recorded = Recorded()
    for key, call in _ask(path, "SELECT key, path FROM calls WHERE result IS NOT NULL"):
        recorded.add(key, call)
    for (key,) in _ask(path, "SELECT key FROM heads WHERE phase = 'committed'"):
        recorded.commit(key)
    return recorded


def _ask(path: Path, query: str) -> Generator[tuple[str, ...]]:
    database = sqlite3.connect(path)
    try:
        yield from database.execute(query)
    finally:
        database.close()
