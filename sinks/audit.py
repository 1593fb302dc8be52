"""Does an output keep its promise: every part readable, every row valid, every rollout once?

Streams whatever Warren writes: a JSONL file (with its file of failures), a directory of parts, a
Parquet file with the parts beside it. Says OK, or what is wrong and where (`file:line`).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from broker.journal.runs import Totals
from sinks.base import OutputRefused
from sinks.ids import Ids
from sinks.part_names import first_gap, listing
from sinks.part_reading import committed
from sinks.totals import BadRow, RowSummary, Tally, summary_of_json

#: As many problems are told in words; all are counted.
MAX_TOLD: Final = 100
_TOKENS: Final = ("prompt_token_ids", "generation_token_ids", "generation_log_probs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What an audit found."""

    rows: int
    """Rollouts with a row."""
    superseded: int
    """Failed rows that a good row has taken the place of."""
    void: int = 0
    """Files that nobody reads any more: a merged part has their rows."""
    totals: Totals
    """Over the rows that count."""
    problem_count: int
    problems: tuple[str, ...] = field(default=())
    """The first of them, each with its place."""

    @property
    def ok(self) -> bool:
        return not self.problem_count


class _Line(NamedTuple):
    where: str
    data: bytes
    series: str
    """`failed` rows may be superseded; all others are final."""


class _Audit:
    def __init__(self) -> None:
        self.ids = Ids()
        self.failed = Ids()
        self.superseded = 0
        self.void = 0
        self.tally = Tally()
        self.problems: list[str] = []
        self.problem_count = 0
        self._run: str | None = None

    def problem(self, text: str) -> None:
        self.problem_count += 1
        if len(self.problems) < MAX_TOLD:
            self.problems.append(text)

    def line(self, line: _Line) -> None:
        try:
            row = summary_of_json(line.data)
        except BadRow as e:
            return self.problem(f"{line.where}: not a row: {e}")
        for text in row_problems(msgspec.json.decode(line.data)):
            self.problem(f"{line.where}: {text}")
        self._run = self._run or row.run
        if row.run != self._run:
            self.problem(f"{line.where}: belongs to run {row.run!r}, others to {self._run!r}")
        self._once(line, row)

    def _once(self, line: _Line, row: RowSummary) -> None:
        id_ = (row.task_index, row.repeat)
        if line.series != "failed":
            if not self.ids.add(*id_):
                return self.problem(f"{line.where}: rollout {row.rollout_id} has a row already")
        elif not row.failed:
            self.problem(f"{line.where}: a good row among the failed ones")
        elif not self.failed.add(*id_):
            return self.problem(f"{line.where}: rollout {row.rollout_id} has a failed row already")
        elif not self.ids.add(*id_):
            self.superseded += 1
            return None
        return self.tally.add(row)

    def expect(self, expected: Iterable[tuple[int, int]]) -> None:
        wanted = Ids()
        for id_ in expected:
            wanted.add(*id_)
            if id_ not in self.ids:
                self.problem(f"no row for task {id_[0]}, repeat {id_[1]}")
        for id_ in self.ids:
            if id_ not in wanted:
                self.problem(f"nobody asked for task {id_[0]}, repeat {id_[1]}")


def audit(
    path: Path,
    *,
    failures: Path | None = None,
    expected: Iterable[tuple[int, int]] | None = None,
) -> Report:
    """Check an output. `expected`: the (task index, repeat) pairs that must have a row."""
    found = _Audit()
    try:
        for line in _lines(found, path):
            found.line(line)
        if failures is not None and failures.exists():
            for line in _jsonl(found, failures, "failed"):
                found.line(line)
    except (OutputRefused, OSError) as e:
        found.problem(str(e))
    if expected is not None:
        found.expect(expected)
    return Report(
        rows=len(found.ids),
        superseded=found.superseded,
        void=found.void,
        totals=found.tally.totals(),
        problem_count=found.problem_count,
        problems=tuple(found.problems),
    )


def row_problems(row: dict[str, Any]) -> Iterator[str]:
    """What a reader of rows would stumble over."""
    own, response = row["warren"], row.get("response")
    if own["rollout_id"] != f"{own['run_id']}/{own['task_index']}/{own['repeat_index']}":
        yield f"rollout id {own['rollout_id']!r} is not run/task/repeat"
    if own["status"] == "failed" and row["reward"] is not None:
        yield "a failed row has a reward"
    if not isinstance(row.get("responses_create_params"), dict):
        yield "responses_create_params is no object"
    if not isinstance(response, dict) or not isinstance(response.get("output"), list):
        return (yield "response is no response object")
    for at, item in enumerate(response["output"]):
        yield from (f"response.output[{at}]: {text}" for text in _token_problems(item))
    paths = [call["path"] for call in own.get("calls", ())]
    if len(paths) != len(set(paths)):
        yield "two calls have one path"
    return None


def _token_problems(item: Any) -> Iterator[str]:
    if not isinstance(item, dict):
        return (yield "no object")
    arrays = [item.get(name) for name in _TOKENS]
    if all(values is None for values in arrays):
        return None
    if not all(isinstance(values, list) for values in arrays):
        return (yield "token fields are not all there")
    if len(item[_TOKENS[1]]) != len(item[_TOKENS[2]]):
        yield "as many logprobs as generated tokens are needed"
    return None


def _lines(found: _Audit, path: Path) -> Iterator[_Line]:
    if path.is_dir():
        yield from _parts(found, path)
    elif path.suffix == ".parquet":
        yield from _parquet(found, path)
    else:
        yield from _jsonl(found, path, "rows")


def _jsonl(found: _Audit, path: Path, series: str) -> Iterator[_Line]:
    with path.open("rb", buffering=1 << 20) as file:
        for number, data in enumerate(file, 1):
            if data.endswith(b"\n"):
                yield _Line(f"{path}:{number}", data, series)
            else:
                found.problem(f"{path}:{number}: the last line is torn")


def _parts(found: _Audit, root: Path) -> Iterator[_Line]:
    parts, void = listing(root)
    found.void += len(void)
    gap = first_gap(parts)
    if gap is not None:
        found.problem(f"{gap.path}: the part before it is missing")
    for lines in committed(root):
        try:
            for part, number, data in lines:
                yield _Line(f"{part.path}:{number}", data, part.series)
        except OutputRefused as e:
            found.problem(str(e))


def _parquet(found: _Audit, path: Path) -> Iterator[_Line]:
    """The file's rows each once, then the parts' rows that are not in it yet."""
    from sinks import parquet, parquet_rows  # loading Arrow takes a while

    if path.exists():
        inside = Ids()
        for number, row in enumerate(parquet_rows.read_file(path), 1):
            own = row["warren"]
            if not inside.add(own["task_index"], own["repeat_index"]):
                found.problem(f"{path}:{number}: rollout {own['rollout_id']} is in it twice")
    root = parquet.parts_of(path)
    if root.is_dir():
        checked = _Audit()
        for line in _parts(found, root):
            checked.line(line)
        for text in checked.problems:
            found.problem(text)
    for number, row in enumerate(parquet.iter_rows(path), 1):
        yield _Line(f"{path}:{number}", msgspec.json.encode(row), "rows")
