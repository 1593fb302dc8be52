"""Which rollouts have a row: bits, not strings, so that ten million of them cost a few MB."""

from collections.abc import Iterator, Sequence
from typing import Final

from sinks.rows import Row
from sinks.totals import RowSummary, Tally

#: Task indices per chunk: sparse or hostile indices cost one chunk each, dense ones one bit.
_CHUNK: Final = 65_536


class Ids:
    """A set of (task index, repeat)."""

    def __init__(self) -> None:
        self._chunks: dict[tuple[int, int], bytearray] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, id_: tuple[int, int]) -> bool:
        task_index, repeat = id_
        chunk = self._chunks.get((repeat, task_index // _CHUNK))
        at = task_index % _CHUNK
        return chunk is not None and bool(chunk[at >> 3] & (0x80 >> (at & 7)))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """All pairs, by repeat, then by task index."""
        for (repeat, high), chunk in sorted(self._chunks.items()):
            for byte, bits in enumerate(chunk):
                for bit in range(8) if bits else ():
                    if bits & (0x80 >> bit):
                        yield high * _CHUNK + byte * 8 + bit, repeat

    def repeats(self) -> list[int]:
        """The repeats that any pair has."""
        return sorted({repeat for repeat, _ in self._chunks})

    def bitmap(self, repeat: int) -> bytes:
        """Task indices of one repeat: bit 7 of byte 0 first."""
        chunks = {high: chunk for (r, high), chunk in self._chunks.items() if r == repeat}
        empty = bytes(_CHUNK // 8)
        return b"".join(chunks.get(i, empty) for i in range(max(chunks, default=-1) + 1))

    def add(self, task_index: int, repeat: int) -> bool:
        """Whether it was new."""
        if (task_index, repeat) in self:
            return False
        at = task_index % _CHUNK
        chunk = self._chunks.setdefault((repeat, task_index // _CHUNK), bytearray(_CHUNK // 8))
        chunk[at >> 3] |= 0x80 >> (at & 7)
        self._count += 1
        return True

    def remove(self, task_index: int, repeat: int) -> None:
        """Forget one that is in."""
        at = task_index % _CHUNK
        self._chunks[repeat, task_index // _CHUNK][at >> 3] &= ~(0x80 >> (at & 7)) & 0xFF
        self._count -= 1


class Ledger:
    """What an output holds: which rows are new to it, and the totals.

    With `apart`, failed rows form a series of their own in which a later good row of the same
    rollout takes a failed one's place; without, a failed row is final.
    """

    def __init__(self, *, apart: bool) -> None:
        self.ids = Ids()
        """Rollouts with a row of any kind."""
        self._apart = apart
        self._failed: dict[str, Ids] = {}
        self._tally = Tally()
        self.totals = self._tally.totals

    def new(self, rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
        """The rows worth writing, main series and failed series; each rollout once in each."""
        main: dict[tuple[int, int], Row] = {}
        failed: dict[tuple[int, int], Row] = {}
        for row in rows:
            id_ = (row.summary.task_index, row.summary.repeat)
            known = id_ in self.ids
            if id_ in main or (known and (row.summary.failed or self.failed_kind(id_) is None)):
                continue
            if self._apart and row.summary.failed:
                failed.setdefault(id_, row)
            else:
                main[id_] = row
        return list(main.values()), [r for id_, r in failed.items() if id_ not in main]

    def record(self, row: RowSummary, *, final: bool = False) -> bool:
        """Count a durable row. False where it changes nothing: its rollout has one.

        `final`: it stands in the main series, so even a failed one is never superseded.
        """
        id_ = (row.task_index, row.repeat)
        superseded = None if row.failed else self.failed_kind(id_)
        if superseded is not None:
            self._failed[superseded].remove(*id_)
            self._tally.superseded(superseded)
        elif not self.ids.add(*id_):
            return False
        elif self._apart and not final and row.error_kind is not None:
            self._failed.setdefault(row.error_kind, Ids()).add(*id_)
        self._tally.add(row)
        return True

    def failed_kind(self, id_: tuple[int, int]) -> str | None:
        """Why the rollout's row is a failed one that a good row may supersede; else None."""
        return next((kind for kind, ids in self._failed.items() if id_ in ids), None)
