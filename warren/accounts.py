"""A collector's accounts: which of the expected rows are durable, by id, and what they came to."""

import asyncio
import time
from collections.abc import Callable, Sequence

from producers import bitmap
from sinks.totals import RowSummary
from warren.outputs import output_paths, written_before
from warren.preparing import Collection
from warren.progress import Progress
from warren.summary import Accumulator, RunSummary


class Accounts:
    """Which of the expected rows are durable, and what they came to."""

    def __init__(self, collection: Collection) -> None:
        self._collection = collection
        self._started = time.monotonic()
        self._report = collection.report
        self._repeats = collection.run.record.repeats
        self._summary = Accumulator(collection.environment.name)
        self.expected = self._report.tasks * self._repeats
        self.resumed = 0
        self.finished = asyncio.Event()
        self._missing = self.expected
        self.progress = Progress(total=self.expected)
        self.tell_publisher: Callable[[int, int], None] = lambda index, repeat: None

    def read(self) -> None:
        """Count what earlier calls wrote."""
        for row in written_before(self._collection.options):
            self._summary.add(row)
        present = self._collection.output.ids
        self.resumed = sum(1 for index, repeat in present if self._expects(index, repeat))
        self._missing = self.expected - self.resumed
        self.progress = Progress(total=self.expected, resumed=self.resumed)
        self._check()

    @property
    def safe(self) -> int:
        """How many of the expected rows are durable."""
        return self.expected - self._missing

    def committed(self, rows: Sequence[RowSummary]) -> None:
        """New rows became durable."""
        for row in rows:
            self._summary.add(row)
            self.progress.row(failed=row.failed, reward=row.reward)
            self._missing -= self._expects(row.task_index, row.repeat)
            self.tell_publisher(row.task_index, row.repeat)
        self._check()

    def _check(self) -> None:
        if not self._missing:
            self.finished.set()

    def _expects(self, index: int, repeat: int) -> bool:
        in_input = index < self._report.end and not bitmap.has(self._report.bad, index)
        return in_input and repeat < self._repeats

    def summary(self) -> RunSummary:
        """What the run came to."""
        return RunSummary(
            run_id=self._collection.run.record.run,
            environments=[self._summary.summary()],
            wall_s=time.monotonic() - self._started,
            outputs=[str(path) for path in output_paths(self._collection.options) if path.exists()],
            resumed=self.resumed,
            bad_lines=self._report.bad_rows,
        )
