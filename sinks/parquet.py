"""One Parquet file: parts beside it while it grows, compacted into it when the run is over.

`x.parquet.parts/` is a directory of ordinary parts (parts.py), so a row is durable before it is
in any Parquet file, which is unreadable before its footer. Compacting streams what is in
`x.parquet` and in the parts into a new file, replaces the old one in one step, then removes the
parts; a crash in between leaves rows in both, which every reader here takes once.

The schema is fixed (SCHEMA): scalars as typed columns to filter by; token arrays as one list per
model call, in the order of the calls in `response.output` (`token_items` says at which item); all
that is nested as JSON text, since Arrow structs pad tool calls with nulls and corrupt them.
"""

import contextlib
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from broker.crashpoints import crash_at
from broker.journal.base import Totals
from sinks.base import OutputBroken, OutputFull, OutputRefused
from sinks.files import FULL, Disk, lock
from sinks.ids import Ids
from sinks.parts import CLAIM, PartFiles, list_parts, read_part
from sinks.rows import Row, RowDict
from sinks.totals import RowSummary, summary_of, summary_of_json

_TOKENS: Final = ("prompt_token_ids", "generation_token_ids", "generation_log_probs")
_JSON: Final = ("responses_create_params", "response", "warren")
_IDS: Final = pa.list_(pa.list_(pa.int32()))

_FIELDS: Final["list[pa.Field[Any]]"] = [
    pa.field("rollout_id", pa.string(), nullable=False),
    pa.field("run_id", pa.string(), nullable=False),
    pa.field("group_id", pa.string()),
    pa.field("task_index", pa.int64(), nullable=False),
    pa.field("repeat_index", pa.int64(), nullable=False),
    pa.field("environment", pa.string()),
    pa.field("model", pa.string()),
    pa.field("status", pa.string(), nullable=False),
    pa.field("error_kind", pa.string()),
    pa.field("error_message", pa.string()),
    pa.field("reward", pa.float64()),
    pa.field("attempt", pa.int32()),
    pa.field("policy_version_min", pa.int64()),
    pa.field("policy_version_max", pa.int64()),
    pa.field("model_calls", pa.int64()),
    pa.field("tool_calls", pa.int64()),
    pa.field("prompt_tokens", pa.int64()),
    pa.field("generated_tokens", pa.int64()),
    pa.field("cost_usd", pa.float64()),
    pa.field("started_at", pa.float64()),
    pa.field("finished_at", pa.float64()),
    pa.field("prompt_token_ids", _IDS),
    pa.field("generation_token_ids", _IDS),
    pa.field("generation_log_probs", pa.list_(pa.list_(pa.float32()))),
    pa.field("token_items", pa.list_(pa.int32())),
    pa.field("responses_create_params", pa.string()),
    pa.field("response", pa.string()),
    pa.field("warren", pa.string(), nullable=False),
    pa.field("extra", pa.string()),
]
SCHEMA: Final = pa.schema(_FIELDS, metadata={"warren": "rows.v1"})

#: A row group is written at the first of these: good to scan, and bounded in memory.
GROUP_ROWS: Final = 10_000
GROUP_BYTES: Final = 64 * 1024 * 1024
#: Rows read at a time; a row with all its tokens may have megabytes.
_READ_ROWS: Final = 64


class ParquetFile:
    """An Output: `path`, and `<path>.parts/` until it is closed."""

    def __init__(
        self,
        path: Path,
        *,
        run: str | None = None,
        generation: str | None = None,
        disk: Disk | None = None,
    ) -> None:
        """Open for this process alone. Raises OutputRefused."""
        self._path = path
        self._root = parts_of(path)
        self._disk = disk or Disk()
        self._closed = False
        try:
            self._root.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise OutputRefused(f"{self._root}: can't be used for output: {e.strerror}") from e
        self._lock = lock(self._root / ".lock")
        try:
            before = summaries_of_file(path) if path.exists() else ()
            self._parts = PartFiles(
                self._root, run=run, generation=generation, disk=disk, before=before
            )
        except BaseException:
            os.close(self._lock)
            raise

    @property
    def ids(self) -> Ids:
        """Rollouts with a durable row."""
        return self._parts.ids

    @property
    def totals(self) -> Totals:
        """Over all durable rows."""
        return self._parts.totals

    @property
    def paths(self) -> Sequence[Path]:
        """The file that `close` makes."""
        return [self._path]

    def commit(self, rows: Sequence[Row]) -> list[RowSummary]:
        """Write what is new as a part."""
        return self._parts.commit(rows)

    def close(self) -> None:
        """Compact the parts into the file. Raises OutputFull, OutputBroken; the parts then stay."""
        if self._closed:
            return
        self._closed = True
        try:
            if list_parts(self._root) or not self._path.exists():
                self._compact()
            _remove_parts(self._root)
        except OSError as e:
            failure = OutputFull if e.errno in FULL else OutputBroken
            raise failure(
                f"{self._path}: the rows are safe in {self._root}, but could not be "
                f"compacted ({e.strerror}); make room and run the same command again"
            ) from e
        finally:
            os.close(self._lock)

    def _compact(self) -> None:
        temporary = self._path.with_name(f".{self._path.name}.tmp")
        try:
            write(temporary, _merged(self._path))
            with temporary.open("rb") as file:
                self._disk.fsync(file.fileno())
            crash_at("sink.before_rename")
            os.replace(temporary, self._path)
        finally:
            temporary.unlink(missing_ok=True)
        self._disk.fsync_directory(self._path.parent)
        crash_at("sink.after_rename")


def parts_of(path: Path) -> Path:
    """Where the rows of a Parquet output are while it is being written."""
    return path.with_name(path.name + ".parts")


def write(path: Path, rows: Iterable[RowDict]) -> int:
    """Write rows as a Parquet file of our schema, streaming; how many."""
    count = 0
    with pq.ParquetWriter(path, SCHEMA, compression="zstd") as writer:
        for group in _groups(rows):
            writer.write_table(pa.Table.from_pylist(group, schema=SCHEMA))
            count += len(group)
    return count


def iter_rows(path: Path) -> Iterator[RowDict]:
    """Rows as JSONL has them, those in `<path>.parts/` included, each rollout once; streaming."""
    yield from _merged(path)


def summaries(path: Path) -> Iterator[RowSummary]:
    """What the rows say for the accounts, those in `<path>.parts/` included."""
    for row in _merged(path):
        yield summary_of(row)


def summaries_of_file(path: Path) -> Iterator[RowSummary]:
    """The same of the file alone, without reading its tokens."""
    for row in _read(path, ["reward", "warren"]):
        yield summary_of_json(
            b'{"reward":%b,"warren":%b}'
            % (msgspec.json.encode(row["reward"]), row["warren"].encode())
        )


def read_file(path: Path) -> Iterator[RowDict]:
    """Every row of the file alone. Raises OutputRefused where it is no Parquet of ours."""
    for columns in _read(path, None):
        yield from_columns(columns)


def to_columns(row: RowDict) -> dict[str, Any]:
    """A row as our schema has it."""
    own = row["warren"]
    error, version = own["error"] or {}, own["policy_version"] or {}
    usage, timing = own["usage"], own["timing"]
    response, tokens = _without_tokens(row["response"])
    nested = {**row, "response": response}
    return {
        **{name: own[name] for name in SCHEMA.names if name in own and name not in _JSON},
        "error_kind": error.get("kind"),
        "error_message": error.get("message"),
        "reward": row["reward"],
        "policy_version_min": version.get("min"),
        "policy_version_max": version.get("max"),
        **{name: usage[name] for name in SCHEMA.names if name in usage},
        "started_at": timing["started_at"],
        "finished_at": timing["finished_at"],
        **tokens,
        **{name: msgspec.json.encode(nested[name]).decode() for name in _JSON},
        "extra": msgspec.json.encode(
            {k: v for k, v in row.items() if k not in _JSON and k != "reward"}
        ).decode(),
    }


def from_columns(columns: dict[str, Any]) -> RowDict:
    """The row that `to_columns` was given."""
    nested = {name: msgspec.json.decode(columns[name]) for name in _JSON}
    output = nested["response"]["output"]
    arrays = zip(*(columns[name] for name in _TOKENS), strict=True)
    for at, fields in zip(columns["token_items"], arrays, strict=True):
        output[at].update(zip(_TOKENS, fields, strict=True))
    return {**nested, "reward": columns["reward"], **msgspec.json.decode(columns["extra"])}


def _without_tokens(response: RowDict) -> tuple[RowDict, dict[str, list[Any]]]:
    columns: dict[str, list[Any]] = {name: [] for name in (*_TOKENS, "token_items")}
    output = []
    for at, item in enumerate(response["output"]):
        fields = [item.get(name) for name in _TOKENS]
        if _fits(*fields):
            columns["token_items"].append(at)
            for name, values in zip(_TOKENS, fields, strict=True):
                columns[name].append(values)
            item = {k: v for k, v in item.items() if k not in _TOKENS}
        output.append(item)
    return {**response, "output": output}, columns


def _fits(prompt: Any, generated: Any, logprobs: Any) -> bool:
    """Whether these lists come back from int32 and float32 as they are; else they stay JSON."""
    try:
        array("i", prompt), array("i", generated)
        return bool(array("f", logprobs).tolist() == logprobs)
    except (TypeError, OverflowError):
        return False


def _groups(rows: Iterable[RowDict]) -> Iterator[list[dict[str, Any]]]:
    group: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        columns = to_columns(row)
        group.append(columns)
        size += _size(columns)
        if len(group) >= GROUP_ROWS or size >= GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _size(columns: dict[str, Any]) -> int:
    tokens = sum(len(values) for name in _TOKENS for values in columns[name])
    return 8 * tokens + sum(len(columns[name]) for name in (*_JSON, "extra"))


def _merged(path: Path) -> Iterator[RowDict]:
    """Each rollout once: a good row rather than a failed one, wherever they stand."""
    root = parts_of(path)
    parts = list_parts(root) if root.is_dir() else []
    good, seen = Ids(), Ids()
    for part in parts:
        for line in read_part(part.path) if part.series == "part" else ():
            row = summary_of_json(line)
            good.add(row.task_index, row.repeat)
    if path.exists():
        for known in read_file(path):
            own = known["warren"]
            id_ = (own["task_index"], own["repeat_index"])
            if not (own["status"] == "failed" and id_ in good) and seen.add(*id_):
                yield known
    for part in parts:
        for line in read_part(part.path):
            row = summary_of_json(line)
            if seen.add(row.task_index, row.repeat):
                yield msgspec.json.decode(line)


def _read(path: Path, columns: list[str] | None) -> Iterator[dict[str, Any]]:
    try:
        with pq.ParquetFile(path) as file:
            if not file.schema_arrow.equals(SCHEMA):
                raise OutputRefused(f"{path}: is not a Parquet file of Warren's rows")
            for batch in file.iter_batches(_READ_ROWS, columns=columns):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as e:
        raise OutputRefused(f"{path}: can't be read ({e}); move it away and run again") from e


def _remove_parts(root: Path) -> None:
    """What was compacted, last part first: a crash in between leaves no gap."""
    for part in reversed(list_parts(root)):
        part.path.unlink()
    for name in (CLAIM, ".lock"):
        (root / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # somebody else's file is in it: leave it
        root.rmdir()


__all__ = [
    "SCHEMA",
    "ParquetFile",
    "from_columns",
    "iter_rows",
    "parts_of",
    "read_file",
    "summaries",
    "summaries_of_file",
    "to_columns",
    "write",
]
