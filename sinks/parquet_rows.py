"""A row as columns: the fixed schema of Warren's Parquet, files of it written and read back.

Scalars are typed columns to filter by; token arrays are one list per model call, in the order of
the calls in `response.output` (`token_items` says at which item); all that is nested is JSON text,
since Arrow structs pad tool calls with nulls and corrupt them. Pages carry checksums, which every
reading here checks.
"""

from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Final

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from sinks.base import OutputRefused
from sinks.rows import RowDict
from sinks.totals import RowSummary, summary_of_json

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


def write(out: Path | IO[bytes], rows: Iterable[RowDict]) -> int:
    """Write rows as a Parquet file of our schema, streaming; how many."""
    count = 0
    with _writer(out) as writer:
        for group in _groups(rows):
            writer.write_table(pa.Table.from_pylist(group, schema=SCHEMA))
            count += len(group)
    return count


def merge(sources: Iterable[Path], out: IO[bytes]) -> None:
    """The rows of small files as one with useful row groups. Raises OutputRefused."""
    with _writer(out) as writer:
        for group in _grouped(batch for path in sources for batch in _batches(path, None)):
            writer.write_table(pa.Table.from_batches(group, schema=SCHEMA))


def _writer(out: Path | IO[bytes]) -> pq.ParquetWriter:
    return pq.ParquetWriter(out, SCHEMA, compression="zstd", write_page_checksum=True)


def _grouped(batches: "Iterable[pa.RecordBatch]") -> "Iterator[list[pa.RecordBatch]]":
    group: list[pa.RecordBatch] = []
    rows = size = 0
    for batch in batches:
        group.append(batch)
        rows += batch.num_rows
        size += batch.nbytes
        if rows >= GROUP_ROWS or size >= GROUP_BYTES:
            yield group
            group, rows, size = [], 0, 0
    if group:
        yield group


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


def _read(path: Path, columns: list[str] | None) -> Iterator[dict[str, Any]]:
    for batch in _batches(path, columns):
        yield from batch.to_pylist()


def _batches(path: Path, columns: list[str] | None) -> "Iterator[pa.RecordBatch]":
    with path.open("rb") as opened:
        try:
            with pq.ParquetFile(opened, page_checksum_verification=True) as file:
                if not file.schema_arrow.equals(SCHEMA):
                    raise OutputRefused(f"{path}: is not a Parquet file of Warren's rows")
                yield from file.iter_batches(_READ_ROWS, columns=columns)
        except (pa.ArrowException, OSError, ValueError) as e:
            raise OutputRefused(f"{path}: can't be read ({e}); move it away and run again") from e
