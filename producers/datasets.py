"""Datasets as streams of lines: JSON Lines, plain or compressed (.gz, .zst), never whole in memory.

A task's index is its zero-based line in the file. Blank lines are no tasks but keep their number,
so that an index always leads back to its line. Lines above MAX_ROW_BYTES are cut and say so.
"""

import gzip
import io
import os
import shutil
import stat
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import zstandard

from broker.errors import WarrenError

#: A row travels inside its task, its trajectory and its result, beside the conversation that it
#: began: three times this still fits a message (codec.MAX_BODY_BYTES).
MAX_ROW_BYTES: Final = 4 * 1024 * 1024
_CHUNK_BYTES: Final = 1024 * 1024
_BOM: Final = b"\xef\xbb\xbf"


class BadDataset(WarrenError):
    """A dataset that cannot be read, with its name and the reason."""


@dataclass(frozen=True, slots=True)
class TaskLine:
    """One line of a dataset that is not blank."""

    index: int
    """Zero-based line: the task's index."""
    raw: bytes
    """The line without surrounding white space (and without a byte order mark)."""
    oversized: bool = False
    """Whether the line is longer than MAX_ROW_BYTES; `raw` is then only its beginning."""

    @property
    def line_number(self) -> int:
        """As editors count."""
        return self.index + 1


def read_lines(path: Path, on_bytes: Callable[[bytes], object] | None = None) -> Iterator[TaskLine]:
    """Yield the dataset's lines in order.

    `on_bytes` gets every (uncompressed) byte of the file in the same pass: `hashlib`'s `update`.
    Raises BadDataset, also in the middle of a torn file.
    """
    index = -1
    try:
        with _opened(path) as file:
            for index, (raw, oversized) in enumerate(_lines(file, on_bytes or bytes)):
                if line := (raw.removeprefix(_BOM) if index == 0 else raw).strip(b" \t\r\n"):
                    yield TaskLine(index, line, oversized)
    except OSError as e:
        raise BadDataset(f"{path}: {e.strerror or e}") from e
    except (EOFError, zlib.error, zstandard.ZstdError) as e:
        raise BadDataset(f"{path}:{index + 2}: the compressed file is torn: {e}") from e


def is_stream(source: str) -> bool:
    """Whether this input can be read only once: `-`, a pipe, a terminal."""
    if source == "-":
        return True
    try:
        mode = os.stat(source).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or stat.S_ISSOCK(mode)


def spool(source: str, output: Path) -> Path:
    """Copy an input that can be read only once to `<output>.input.jsonl`, and return that path.

    It is there whole or not at all. Piping the same again to the same output replaces it.
    """
    suffix = Path(source).suffix if Path(source).suffix in {".gz", ".zst"} else ""
    target = output.with_name(f"{output.name}.input.jsonl{suffix}")
    part = target.with_name(f"{target.name}.part")
    try:
        with _source(source) as incoming, part.open("wb") as file:
            shutil.copyfileobj(incoming, file, _CHUNK_BYTES)
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    except OSError as e:
        raise BadDataset(f"{source}: cannot be kept as {target}: {e.strerror or e}") from e
    finally:
        part.unlink(missing_ok=True)
    return target


@contextmanager
def _source(source: str) -> Iterator[IO[bytes]]:
    if source == "-":
        yield sys.stdin.buffer
        return
    with open(source, "rb") as file:
        yield file


@contextmanager
def _opened(path: Path) -> Iterator[io.BufferedIOBase]:
    with path.open("rb") as file:
        if path.suffix == ".gz":
            with gzip.open(file) as unzipped:
                yield unzipped
        elif path.suffix == ".zst":
            with io.BufferedReader(_Unzstd(file), _CHUNK_BYTES) as unpacked:
                yield unpacked
        else:
            yield file


def _lines(
    file: io.BufferedIOBase, on_bytes: Callable[[bytes], object]
) -> Iterator[tuple[bytes, bool]]:
    """Each line, cut at the limit, and whether it was cut."""
    while line := file.readline(MAX_ROW_BYTES + 1):
        on_bytes(line)
        part = line
        while not part.endswith(b"\n") and (part := file.readline(_CHUNK_BYTES)):
            on_bytes(part)
        yield line, len(line) > MAX_ROW_BYTES


class _Unzstd(io.RawIOBase):
    """Zstandard frames, one after the other. A torn last frame is an error, not an end."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._packed = b""
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        while not self._ready and self._more():
            pass
        size = min(len(buffer), len(self._ready))
        buffer[:size], self._ready = self._ready[:size], self._ready[size:]
        return size

    def _more(self) -> bool:
        self._packed = self._packed or self._file.read(64 * 1024)
        if not self._packed:
            if self._frame is not None:
                raise EOFError("it ends in the middle of a zstd frame")
            return False
        self._frame = self._frame or zstandard.ZstdDecompressor().decompressobj()
        self._ready = self._frame.decompress(self._packed)
        self._packed = self._frame.unused_data if self._frame.eof else b""
        if self._frame.eof:
            self._frame = None
        return True


__all__ = ["MAX_ROW_BYTES", "BadDataset", "TaskLine", "is_stream", "read_lines", "spool"]
