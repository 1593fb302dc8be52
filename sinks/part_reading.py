"""The committed rows of a directory, each once, also while sinks write and merge there."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from sinks.base import OutputRefused
from sinks.part_formats import read_part
from sinks.part_names import Part, Series, listing

Line = tuple[Part, int, bytes]
"""Where it stands: part and number; and the row as JSON with a newline."""


class _Read(NamedTuple):
    part: Part
    rows: int


def committed(root: Path) -> Iterator[Iterator[Line]]:
    """The rows that were committed before now, part by part, good ones first.

    A part that is merged before we come to it is read from its merged part, whose rows are in the
    order of the parts: those that were read already are passed over. The inner iterators, which
    have to be read to their ends, raise OutputRefused.
    """
    read: dict[tuple[Series, str], list[_Read]] = {}
    for part in listing(root).parts:
        yield _lines(root, part, read.setdefault((part.series, part.shard), []))


def committed_lines(root: Path) -> Iterator[Line]:
    """The same in one go."""
    for lines in committed(root):
        yield from lines


def _lines(root: Path, part: Part, before: list[_Read]) -> Iterator[Line]:
    if before and part.last <= before[-1].part.last:
        return  # in a merged part that was read
    try:
        yield from _passing(part, 0, before)
    except FileNotFoundError:
        merged = _stands_for(root, part)
        passed = sum(read.rows for read in before if read.part.number >= merged.number)
        yield from _passing(merged, passed, before)


def _passing(part: Part, passed: int, before: list[_Read]) -> Iterator[Line]:
    number = 0
    for number, data in enumerate(read_part(part.path), 1):
        if number > passed:
            yield part, number, data
    before.append(_Read(part, number))


def _stands_for(root: Path, gone: Part) -> Part:
    for part in listing(root).parts:
        ours = (part.series, part.shard) == (gone.series, gone.shard)
        if ours and part.number <= gone.number <= part.last:
            return part
    raise OutputRefused(f"{gone.path}: was removed while it was to be read; restore it")
