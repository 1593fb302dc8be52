"""How rows stand in a part: JSON lines, plain or one zstd frame, or Parquet; by the file's name.

Everything streams. Where a part is not whole, its reader raises OutputRefused and names it.
"""

import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final, Literal

import msgspec
import zstandard

from sinks.base import OutputRefused
from sinks.totals import BadRow, RowSummary, summary_of_json

PartFormat = Literal["jsonl.zst", "jsonl", "parquet"]
PART_FORMATS: Final[tuple[PartFormat, ...]] = ("jsonl.zst", "parquet", "jsonl")
_LEVEL: Final = 3


def pack(format_: PartFormat, rows: Sequence[bytes]) -> bytes:
    """A whole part of these rows, each a JSON object."""
    if format_ == "parquet":
        from sinks import parquet_rows  # loading Arrow takes a while

        out = io.BytesIO()
        parquet_rows.write(out, map(msgspec.json.decode, rows))
        return out.getvalue()
    data = b"\n".join([*rows, b""])
    return data if format_ == "jsonl" else _compressor().compress(data)


def merge(sources: Sequence[Path], out: IO[bytes]) -> None:
    """Write the rows of these parts, in this order, as one part of their format.

    Raises OutputRefused (one is not whole), FileNotFoundError (one is not there any more).
    """
    if _format_of(sources[0]) == "parquet":
        from sinks import parquet_rows

        return parquet_rows.merge(sources, out)
    lines = (line for path in sources for line in read_part(path))
    if _format_of(sources[0]) == "jsonl":
        return out.writelines(lines)
    size = sum(map(_unpacked_bytes, sources))
    packed = _compressor().stream_writer(out, size=size, closefd=False)
    for line in lines:
        packed.write(line)
    packed.flush(zstandard.FLUSH_FRAME)
    return None


def read_part(path: Path) -> Iterator[bytes]:
    """The rows of a part as lines of JSON. Raises OutputRefused, FileNotFoundError."""
    with _telling(path):
        if _format_of(path) == "parquet":
            from sinks import parquet_rows

            for row in parquet_rows.read_file(path):
                yield msgspec.json.encode(row) + b"\n"
            return
        with path.open("rb") as file:
            yield from _zstd_lines(file) if path.suffix == ".zst" else _lines(file)


def read_summaries(path: Path) -> Iterator[RowSummary]:
    """What the rows of a part say for the accounts; of Parquet no tokens are read."""
    number = 1
    try:
        for row in _summaries(path):
            yield row
            number += 1
    except BadRow as e:
        raise OutputRefused(f"{path}:{number}: not a row of Warren's ({e})") from e


def _summaries(path: Path) -> Iterator[RowSummary]:
    if _format_of(path) != "parquet":
        yield from map(summary_of_json, read_part(path))
        return
    from sinks import parquet_rows

    with _telling(path):
        yield from parquet_rows.summaries_of_file(path)


@contextmanager
def _telling(path: Path) -> Iterator[None]:
    """What reading raises becomes OutputRefused, which names the file and what to do."""
    try:
        yield
    except (FileNotFoundError, BadRow):
        raise
    except (zstandard.ZstdError, OSError, ValueError, OutputRefused) as e:
        raise OutputRefused(
            f"{path}: unreadable part ({e.__cause__ or e}); restore it from a copy, or move the "
            "whole directory away and run again: a part is never skipped"
        ) from e


def _format_of(path: Path) -> PartFormat:
    return next(known for known in PART_FORMATS if path.name.endswith("." + known))


def _compressor() -> zstandard.ZstdCompressor:
    return zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)


def _lines(file: Iterable[bytes]) -> Iterator[bytes]:
    for line in file:
        if not line.endswith(b"\n"):
            raise ValueError("the last line is torn")
        yield line


def _zstd_lines(file: IO[bytes]) -> Iterator[bytes]:
    size = zstandard.get_frame_parameters(file.read(18)).content_size
    file.seek(0)
    read = 0
    with zstandard.ZstdDecompressor().stream_reader(file, closefd=False) as stream:
        for line in _lines(io.BufferedReader(stream, 1 << 17)):
            read += len(line)
            yield line
    if read != size:  # the reader ends quietly where the file does
        raise ValueError(f"{read} of {size} bytes are there")


def _unpacked_bytes(path: Path) -> int:
    with path.open("rb") as file, _telling(path):
        return zstandard.get_frame_parameters(file.read(18)).content_size
