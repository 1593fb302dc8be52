"""What stands in a directory of parts, by its names alone.

    part-<shard>-<number>.<format>           committed: immutable, complete
    part-<shard>-<first>-<last>.<format>     merged: the rows of a block of parts, in their order
    failed-<shard>-...                       failed rows, alike

Once a merged part is there, the parts that it covers are void, and removed: whoever finds one reads
around it. So names say at any moment which rows count.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, NamedTuple

Series = Literal["part", "failed"]
SERIES: Final[tuple[Series, ...]] = ("part", "failed")
#: Whose directory it is, the format of its parts, and how many of them are merged into one.
CLAIM: Final = ".warren.json"
_NAME: Final = re.compile(
    r"(part|failed)-([a-z0-9_]+)-(\d{9})(?:-(\d{9}))?\.(?:jsonl|jsonl\.zst|parquet)"
)


@dataclass(frozen=True, slots=True)
class Part:
    """A committed part, by its name."""

    path: Path
    series: Series
    shard: str
    number: int
    """Of a merged one the first that it stands for."""
    last: int
    """Of a merged one the last; else as `number`."""


class Listing(NamedTuple):
    """What was found in a directory."""

    parts: list[Part]
    """Those whose rows count: good rows first, then by shard and number."""
    void: list[Part]
    """Those that a merged part stands for."""


def part_name(series: Series, shard: str, number: int, last: int | None, format_: str) -> str:
    """The file's name; `last` of a merged part only."""
    range_ = f"{number:09d}" if last is None else f"{number:09d}-{last:09d}"
    return f"{series}-{shard}-{range_}.{format_}"


def list_parts(root: Path) -> list[Part]:
    """The committed parts in a directory whose rows count."""
    return listing(root).parts


def listing(root: Path) -> Listing:
    """What is in a directory, even while a sink merges there.

    A merged part that appears during a look may be missed with the parts it stands for, which go
    after it came. The next look finds it: so look until two looks see the same merged parts.
    """
    found, again = _look(root), _look(root)
    while _merged(again) != _merged(found):
        found, again = again, _look(root)
    return _split(found)


def first_gap(parts: Sequence[Part]) -> Part | None:
    """The first part before which a number of its series is missing."""
    expected: dict[tuple[Series, str], int] = {}
    for part in parts:
        series = (part.series, part.shard)
        if part.number != expected.get(series, 1):
            return part
        expected[series] = part.last + 1
    return None


def _look(root: Path) -> list[Part]:
    found = []
    for path in root.iterdir():
        match = _NAME.fullmatch(path.name)
        if match is not None:
            series: Series = "part" if match[1] == "part" else "failed"
            number = int(match[3])
            found.append(Part(path, series, match[2], number, int(match[4] or number)))
    return sorted(found, key=lambda p: (SERIES.index(p.series), p.shard, p.number, -p.last))


def _merged(parts: Sequence[Part]) -> list[Part]:
    return [part for part in parts if part.last != part.number]


def _split(found: Sequence[Part]) -> Listing:
    counting: list[Part] = []
    void: list[Part] = []
    for part in found:
        before = counting[-1] if counting else part
        ours = (before.series, before.shard) == (part.series, part.shard)
        covered = before is not part and ours and part.last <= before.last
        # two plain parts of one number are in two formats: a gap will be said, nothing hidden
        (void if covered and before.last != before.number else counting).append(part)
    return Listing(counting, void)
