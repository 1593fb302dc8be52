"""One worker process, and one run that a command follows: what `cluster.py` starts and asks."""

import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from sinks.audit import audit
from sinks.part_reading import committed_lines
from tests.support.oracle import STEPS, check_rows, check_steps, repeated

if TYPE_CHECKING:
    from tests.support.cluster import Cluster

#: What waits longer than this is stuck, on any machine.
PATIENCE_S: Final = 120.0


@dataclass(eq=False)
class Worker:
    """One worker process."""

    kind: str
    name: str
    """Its own; a gateway's is its API key at the model."""
    process: subprocess.Popen[bytes]
    log: Path
    start_again: Callable[[], "Worker"]
    keep: bool = False
    """Whether another is started when it ends: what a supervisor does."""

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """To the worker alone, not to what it started."""
        self.process.send_signal(number)

    def said(self, text: str) -> bool:
        """Whether this stands in its log."""
        return text in self.log.read_text(errors="replace")


@dataclass(eq=False)
class Run:
    """A run that `warren enqueue --wait` (or `collect`) follows."""

    cluster: "Cluster"
    id: str
    tasks: int
    process: subprocess.Popen[bytes]
    output: Path
    log: Path
    command: Sequence[str] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    starts: int = 1
    steps: int = STEPS
    """Model calls that each of its rollouts makes."""

    @property
    def name(self) -> str:
        """Its present process's, as `Worker.name`."""
        return f"{self.id}-{self.starts}"

    def wait(self, within_s: float = PATIENCE_S) -> None:
        """Until its command has ended well."""
        self.cluster.until(lambda: self.process.poll() is not None, within_s, self._standing)
        assert self.process.returncode == 0, self.log.read_text(errors="replace")[-3000:]

    def _standing(self) -> str:
        return f"{len(self.rows())} of {self.tasks} rows; asked {self.cluster.model.asked.total()}"

    def rows(self) -> list[dict[str, Any]]:
        """What is committed so far; of failed rows only those without a good one."""
        good: list[dict[str, Any]] = []
        failed: list[dict[str, Any]] = []
        for series, data in self._lines():
            (failed if series == "failed" else good).append(msgspec.json.decode(data))
        known = {row["warren"]["rollout_id"] for row in good}
        return good + [row for row in failed if row["warren"]["rollout_id"] not in known]

    def _lines(self) -> Generator[tuple[str, bytes]]:
        if self.output.is_dir():
            for part, _, data in committed_lines(self.output):
                yield part.series, data
        elif self.output.exists():
            for line in self.output.read_bytes().splitlines(keepends=True):
                if line.endswith(b"\n"):
                    yield "rows", line

    def all_answered(self) -> bool:
        """Whether the model has answered everything that this run asks it, or the run is over."""
        answered = sum(run == self.id for run, _, _ in set(self.cluster.model.answered))
        return answered >= self.tasks * self.steps or self.process.poll() is not None

    def check(
        self,
        within_s: float = PATIENCE_S,
        *,
        again: int = 0,
        failed: Mapping[int, str] | None = None,
        unscored: Collection[int] = (),
    ) -> None:
        """Wait for the end, then ask the oracle.

        `again`: model calls that may be repeated beside those that dead gateways had in hand.
        `failed`: number of a task -> the kind of its error. `unscored`: whose verifier fails.
        """
        self.wait(within_s)
        report = audit(self.output, expected=((i, 0) for i in range(self.tasks)))
        assert report.ok, report.problems
        rows = self.rows()
        counts = Counter(row["warren"]["rollout_id"] for row in rows)
        assert counts == Counter(f"{self.id}/{i}/0" for i in range(self.tasks))
        failed = failed or {}
        check_rows(rows, failed, unscored)
        model = self.cluster.model
        check_steps(model, self.id, set(range(self.tasks)) - set(failed), self.steps)
        twice = repeated(model, self.id, self.cluster.excused)
        assert twice.total() <= again, f"repeated: {self.cluster.history(twice)}"
