"""Finding equal pairs of given `_ng_*` indices among any number of rows, in flat memory.

NeMo Gym's tools raise on rows with equal (`_ng_task_index`, `_ng_rollout_index`), so they must be
found before the run. Rows that give an index are spilled to a temporary file as sorted runs and
merged; rows that give none cost one bit each, and nothing at all while no row gives any.
"""

import heapq
import itertools
import os
import struct
import tempfile
from collections.abc import Iterator
from types import TracebackType
from typing import Final, NamedTuple, Self

from producers import bitmap

_ENTRY: Final = struct.Struct(">QQQ")  # task, rollout + 1 (0: all repeats), line; sorts as bytes
_RUN_ENTRIES: Final = 65_536
_BLOCK_ENTRIES: Final = 1024
#: Greater indices than NeMo Gym's can ever be.
MAX_INDEX: Final = 2**63 - 1


class Clash(NamedTuple):
    """Two rows whose rollouts would have the same pair of indices."""

    later: int
    """The later row's index."""
    earlier: int
    """The earlier row's index."""
    task: int
    """The `_ng_task_index` that both have."""


class Pairs:
    """Collects what each row gives; `clashes` says which rows must not run together."""

    def __init__(self, repeats: int) -> None:
        self._repeats = repeats
        self._run: list[bytes] = []
        self._sizes: list[int] = []
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        self._plain = bytearray()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def add(self, index: int, task: int | None, rollout: int | None) -> None:
        """Say what the row at `index` gives; None for what it leaves to Warren."""
        if task is None and rollout is None:
            return bitmap.add(self._plain, index)
        key = index if task is None else task
        self._run.append(_ENTRY.pack(key, 0 if rollout is None else rollout + 1, index))
        if len(self._run) >= _RUN_ENTRIES:
            self._spill()

    def clashes(self) -> Iterator[Clash]:
        """All clashes, each later row with one earlier row."""
        self._spill()
        runs = [self._read(start, size) for start, size in self._extents()]
        entries = (_ENTRY.unpack(packed) for packed in heapq.merge(*runs))
        for task, same in itertools.groupby(entries, key=lambda entry: entry[0]):
            yield from self._within(task, ((rollout, index) for _, rollout, index in same))

    def _within(self, task: int, given: Iterator[tuple[int, int]]) -> Iterator[Clash]:
        """Clashes among the rows of one task index; `given` is sorted."""
        whole = task if bitmap.has(self._plain, task) else None  # a row that has all repeats
        last: tuple[int, int] | None = None
        for rollout, index in given:
            same = last[1] if last is not None and last[0] == rollout else None
            covering = whole if rollout <= self._repeats else None
            for other in {same, covering}:
                if other is not None:
                    yield Clash(max(index, other), min(index, other), task)
            if rollout == 0 and whole is None:
                whole = index
            last = rollout, index

    def _spill(self) -> None:
        if self._run:
            self._file.write(b"".join(sorted(self._run)))
            self._sizes.append(len(self._run))
            self._run = []

    def _extents(self) -> Iterator[tuple[int, int]]:
        self._file.flush()
        starts = itertools.accumulate(self._sizes, initial=0)
        return zip(starts, self._sizes, strict=False)

    def _read(self, start: int, size: int) -> Iterator[bytes]:
        for at in range(start, start + size, _BLOCK_ENTRIES):
            entries = min(_BLOCK_ENTRIES, start + size - at)
            block = os.pread(self._file.fileno(), entries * _ENTRY.size, at * _ENTRY.size)
            for offset in range(0, len(block), _ENTRY.size):
                yield block[offset : offset + _ENTRY.size]


__all__ = ["MAX_INDEX", "Clash", "Pairs"]
