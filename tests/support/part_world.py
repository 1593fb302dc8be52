"""Directories of parts as strangers read them, and disks on which something happens at a step."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow.dataset as ds
import zstandard

from sinks.files import Disk

Id = tuple[int, int]


def outside(root: Path, series: str = "part") -> list[Id]:
    """Task and repeat of all rows of a series, as tools read them that know nothing of Warren."""
    lines = [
        line
        for path in sorted(root.glob(f"{series}-*.jsonl.zst"))
        for line in zstandard.ZstdDecompressor().decompress(path.read_bytes()).splitlines()
    ]
    found = [json.loads(line)["warren"] for line in lines]
    ids = [(int(own["task_index"]), int(own["repeat_index"])) for own in found]
    if files := [str(path) for path in sorted(root.glob(f"{series}-*.parquet"))]:
        table = ds.dataset(files, format="parquet").to_table(["task_index", "repeat_index"])
        ids += zip(*(column.to_pylist() for column in table.columns), strict=True)
    return ids


def names(root: Path) -> list[str]:
    """What is there, its claim left out."""
    return sorted(p.name for p in root.iterdir() if p.name != ".warren.json")


class Stopped(Exception):
    """The process is not there any more."""


class SteppingDisk(Disk):
    """Calls something before its n-th operation: a rival acts there, or this process ends."""

    def __init__(self) -> None:
        self._left = 0
        self._then: Callable[[], object] = list

    def at(self, step: int, then: Callable[[], object]) -> None:
        """`step` counts from 1."""
        self._left, self._then = step, then

    def clear(self) -> None:
        """What was not reached is not done any more."""
        self._left = 0

    def write(self, fd: int, *pieces: bytes) -> int:
        self._step()
        return super().write(fd, *pieces)

    def fsync(self, fd: int) -> None:
        self._step()
        super().fsync(fd)

    def link(self, source: Path, target: Path) -> None:
        self._step()
        super().link(source, target)

    def remove(self, path: Path) -> None:
        self._step()
        super().remove(path)

    def _step(self) -> None:
        self._left -= 1
        if self._left == 0:
            self._then()


def stop() -> None:
    """For `SteppingDisk.at`."""
    raise Stopped


def doubled(ids: Sequence[Id]) -> set[Id]:
    """Those that are there more than once."""
    return {id_ for id_ in ids if ids.count(id_) > 1}
