"""`<output>.run.json`: what a run is, so that the same command goes on and another one is refused.

It is on disk (fsync + rename) before the first publish. Opening it takes a lock beside it that the
system releases when its holder dies, so a second collector on the same run is refused by name.

* A larger limit or repeats extends the run; a smaller one leaves what is there and changes nothing.
* Another dataset, environment, model, sampling or run id is a RunConflict.
* An output that is gone is a new *generation*: journal keys and rows of the old one don't count.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self

import msgspec

from broker.errors import WarrenError
from broker.journal.runs import RunInfo, Runs
from broker.messages import Sampling
from broker.names import is_name

_REMEDY: Final = "use --overwrite to begin anew, or another -o"
#: Compared in this order; the first that differs is named.
_FIXED: Final = ("dataset_sha256", "environment", "model", "sampling", "prompting")


class RunConflict(WarrenError):
    """This output belongs to a run that the command does not continue (exit code 2)."""


class RunBusy(RunConflict):
    """Another living process collects this run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """What a command asks for; a run with the same output must have been asked for the same."""

    dataset: str
    """Where it lies; for people, never compared."""
    dataset_sha256: str
    environment: str
    model: str
    repeats: int = 1
    limit: int | None = None
    """At most this many tasks; None for all."""
    sampling: Sampling = field(default_factory=Sampling)
    prompting: str = ""
    """Digest of the run's own system prompt, examples and judge; empty where it has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord(RunSpec):
    """The file's content."""

    schema: Literal[1] = 1
    run: str
    generation: str
    created_at: float
    """Unix seconds."""
    watermark: tuple[int, ...]
    """Per repeat: every task with a smaller index has been published, and confirmed."""

    @property
    def info(self) -> RunInfo:
        """As the journal registers it."""
        return RunInfo(
            run=self.run,
            generation=self.generation,
            environment=self.environment,
            model=self.model,
            repeats=self.repeats,
            created_at=self.created_at,
        )


_RECORDS: Final = msgspec.json.Decoder(RunRecord)


class OpenedRun:
    """A run that this process has locked. Close it (or leave its context) when all is done."""

    def __init__(
        self,
        path: Path,
        lock: "_Lock",
        record: RunRecord,
        known: RunRecord | None,
        notes: list[str],
    ) -> None:
        self._path = path
        self._lock = lock
        self._known = known
        self.record = record
        self.notes = notes
        """What the user should hear: resumed, extended, a new generation."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def resumed(self) -> bool:
        """Whether rows of this generation may be there already."""
        return self._known is not None and self._known.generation == self.record.generation

    def published(self, end: int, repeats: int) -> None:
        """All tasks with an index below `end` are published in each of the first `repeats`."""
        raised = tuple(
            max(mark, end) if repeat < repeats else mark
            for repeat, mark in enumerate(self.record.watermark)
        )
        if raised != self.record.watermark:
            self.record = dataclasses.replace(self.record, watermark=raised)
            write_record(self._path, self.record)

    async def register(self, runs: Runs) -> None:
        """Make the run known to the journal, unless its id belongs to another output there.

        Raises: RunConflict, JournalUnavailable.
        """
        there = await runs.progress(self.record.run)
        ours = {self.record.generation, self._known.generation if self._known else None}
        if there is not None and there.info.generation not in ours:
            raise RunConflict(
                f"the run id {self.record.run!r} is taken by another output: "
                "choose another --run-id"
            )
        await runs.register(self.record.info)

    def close(self) -> None:
        """Let others have the run."""
        self._lock.release()


def record_path(output: Path) -> Path:
    """Where the record of an output stands."""
    return output.with_name(f"{output.name}.run.json")


def open_run(
    output: Path,
    spec: RunSpec,
    *,
    run: str | None = None,
    overwrite: bool = False,
    outputs: Sequence[Path] = (),
) -> OpenedRun:
    """Lock the run of `output`, begin or continue it, and have its record on disk.

    `outputs` are all paths whose existence means that rows were written (default: `output`);
    `overwrite` deletes them first. Blocks for a few fsyncs.

    Raises: RunBusy, RunConflict, OSError.
    """
    if run is not None and not is_name(run):
        raise RunConflict(f"run id {run!r}: only a-z, 0-9, _ and -, at most 64 characters")
    path, outputs = record_path(output), outputs or [output]
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = _Lock(path.with_name(f"{output.name}.run.lock"))
    try:
        known = _known(path, overwrite)
        if overwrite:
            _delete(outputs)
            record = _new(spec, run or (known.run if known else None))
            notes: list[str] = []
        else:
            rows = [path for path in outputs if path.exists()]
            record, notes = _continued(output, spec, run, known, rows)
        if record != known:
            write_record(path, record)
        return OpenedRun(path, lock, record, known, notes)
    except BaseException:
        lock.release()
        raise


def read_record(path: Path) -> RunRecord | None:
    """The record, or None where there is none. Raises RunConflict where it cannot be read."""
    try:
        return _RECORDS.decode(path.read_bytes())
    except FileNotFoundError:
        return None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise RunConflict(f"{path} cannot be read ({e}): {_REMEDY}") from e


def write_record(path: Path, record: RunRecord) -> None:
    """Replace the file so that after a crash either the old or the new one is there, whole."""
    part = path.with_name(f"{path.name}.part")
    with part.open("wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(record), indent=1))
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    _sync_folder(path.parent)


def _continued(
    output: Path, spec: RunSpec, run: str | None, known: RunRecord | None, rows: Sequence[Path]
) -> tuple[RunRecord, list[str]]:
    """The record to go on with, and what the user should hear."""
    if known is None:
        if rows:
            raise RunConflict(f"{rows[0]} exists, but not from a known run: {_REMEDY}")
        return _new(spec, run), []
    if not rows:
        note = f"{output} is gone, so its run begins anew (new generation)"
        return _new(spec, run or known.run), [note]
    _compare(output, spec, run, known)
    return _extended(spec, known)


def _compare(output: Path, spec: RunSpec, run: str | None, known: RunRecord) -> None:
    if run is not None and run != known.run:
        raise RunConflict(f"{output} belongs to run {known.run!r}, not {run!r}: {_REMEDY}")
    for name in _FIXED:
        before, now = getattr(known, name), getattr(spec, name)
        if before != now:
            raise RunConflict(
                f"{output} is from another run: its {name.replace('_', ' ')} is {_shown(before)}, "
                f"now it is {_shown(now)}: {_REMEDY}"
            )


def _extended(spec: RunSpec, known: RunRecord) -> tuple[RunRecord, list[str]]:
    limit = None if None in (spec.limit, known.limit) else max(spec.limit or 0, known.limit or 0)
    repeats = max(spec.repeats, known.repeats)
    watermark = known.watermark + (0,) * (repeats - known.repeats)
    notes = [f"going on with run {known.run}"]
    if (limit, repeats) != (known.limit, known.repeats):
        notes.append(f"extended to {_counted(limit)}, {repeats} repeats")
    if (limit, repeats) != (spec.limit, spec.repeats):
        notes.append(f"it keeps {_counted(limit)}, {repeats} repeats: runs never shrink")
    extended = dataclasses.replace(
        known, dataset=spec.dataset, limit=limit, repeats=repeats, watermark=watermark
    )
    return extended, notes


def _new(spec: RunSpec, run: str | None) -> RunRecord:
    asked = {f.name: getattr(spec, f.name) for f in dataclasses.fields(RunSpec)}
    return RunRecord(
        **asked,
        run=run or uuid.uuid4().hex[:12],
        generation=uuid.uuid4().hex[:12],
        created_at=time.time(),
        watermark=(0,) * spec.repeats,
    )


def _known(path: Path, overwrite: bool) -> RunRecord | None:
    if not overwrite:
        return read_record(path)
    with contextlib.suppress(RunConflict):  # unreadable, and about to be replaced
        return read_record(path)
    return None


def _delete(outputs: Sequence[Path]) -> None:
    for path in outputs:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _counted(limit: int | None) -> str:
    return "all tasks" if limit is None else f"{limit} tasks"


def _shown(value: object) -> str:
    if isinstance(value, Sampling):
        given = {k: v for k, v in msgspec.structs.asdict(value).items() if v is not None}
        return json.dumps(given) if given else "the default"
    return str(value)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _Lock:
    """An flock on a file that says who holds it. The system drops it when the holder dies."""

    def __init__(self, path: Path) -> None:
        self._path = path
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as e:
                holder = os.read(descriptor, 4096).decode(errors="replace")
                os.close(descriptor)
                raise RunBusy(_busy(path, holder)) from e
            except BaseException:
                os.close(descriptor)
                raise
            if self._is_current(descriptor):
                break
            os.close(descriptor)  # its holder deleted it between our open and our lock
        os.ftruncate(descriptor, 0)
        who = {"host": socket.gethostname(), "pid": os.getpid()}
        os.pwrite(descriptor, json.dumps(who).encode(), 0)
        self._descriptor: int | None = descriptor

    def release(self) -> None:
        """Delete the file while it is still ours, then let go. Twice is once."""
        if self._descriptor is not None:
            self._path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = None

    def _is_current(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), self._path.stat())
        except FileNotFoundError:
            return False


def _busy(path: Path, holder: str) -> str:
    try:
        who = json.loads(holder)
        name = f"process {who['pid']} on {who['host']}"
    except (ValueError, TypeError, KeyError):
        name = "another process"
    return f"this run is being collected by {name} (lock: {path}): wait for it or stop it"


__all__ = [
    "OpenedRun",
    "RunBusy",
    "RunConflict",
    "RunRecord",
    "RunSpec",
    "open_run",
    "read_record",
    "record_path",
    "write_record",
]
