"""The seam: what a sink asks of a place for rows, and how such a place can fail.

* OutputError
  - OutputFull      no room: nothing more of this batch is durable; wait for room, commit again
  - OutputBroken    the disk, or somebody else, works against us: crash, let a supervisor restart
  - OutputRefused   what is there can't be written to; the text says what the user can do

Every implementation keeps the same promises and passes the same contract tests: `jsonl.py` (one
file), `parts.py` (directories of shards), `parquet.py` (one Parquet file).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from broker.errors import WarrenError
from broker.journal.runs import Totals
from sinks.ids import Ids
from sinks.rows import Row
from sinks.totals import RowSummary


class OutputError(WarrenError):
    """Something about where rows go."""


class OutputFull(OutputError):
    """No room. The rows in `written` became durable before it was noticed."""

    def __init__(self, text: str, written: tuple[RowSummary, ...] = ()) -> None:
        super().__init__(text)
        self.written = written


class OutputBroken(OutputError):
    """Writing failed in a way that no retry on this descriptor can repair."""


class OutputRefused(OutputError):
    """The output can't be opened as it stands."""


class Output(Protocol):
    """One run's rows. Blocking; one thread at a time."""

    @property
    def ids(self) -> Ids:
        """Rollouts with a durable row, those of earlier processes included."""
        ...

    @property
    def totals(self) -> Totals:
        """Over all durable rows."""
        ...

    @property
    def paths(self) -> Sequence[Path]:
        """The files or directories that hold the rows."""
        ...

    def commit(self, rows: Sequence[Row]) -> list[RowSummary]:
        """Make these rows durable; those that were new. Known rollouts are not written again.

        On return every rollout of `rows` has exactly one durable row. Raises OutputFull,
        OutputBroken.
        """
        ...

    def tidy(self) -> None:
        """Work that can wait, a bounded piece of it: nobody's acknowledgement depends on it.

        What a full disk prevents is put off. Raises OutputBroken.
        """
        ...

    def close(self) -> None:
        """Let go; nothing is pending."""
        ...
