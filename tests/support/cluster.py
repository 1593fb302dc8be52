"""Warren as it is deployed, for tests that kill it: every worker a process, a counting model.

    with cluster(folder, rabbitmq, redis) as warren:
        warren.start("agent", "tool", "model", "verifier", "sink")
        run = warren.enqueue(200)
        warren.kill(warren.workers["agent"][0])
        run.check()

`check` is the oracle of all fault tests: every accepted rollout has one row, with the reward that
an undisturbed run gives it, and no model call was made again but those that a dead gateway had out.
"""

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from sinks.audit import audit
from sinks.parts import list_parts, read_part
from tests.support.background import Background
from tests.support.model_server import ModelServer
from tests.support.proxy import Proxy, proxy_to
from tests.support.services import Container, RabbitProcess, RedisProcess

ENVIRONMENTS: Final = Path(__file__).parent.parent / "faults" / "environments"
KINDS: Final = ("agent", "tool", "model", "verifier", "sink")
STEPS: Final = 2
PREFETCH: Final = 32
READY_S: Final = 60.0
#: What an interpreter alone takes on a loaded machine is not the worker's.
EXIT_S: Final = 5.0

RabbitServer = RabbitProcess | Container
RedisServer = RedisProcess | Container


@dataclass(eq=False)
class Worker:
    """One worker process."""

    kind: str
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

    def wait(self, within_s: float = 60.0) -> None:
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
            for part in list_parts(self.output):
                for data in read_part(part.path):
                    yield part.series, data
        elif self.output.exists():
            for line in self.output.read_bytes().splitlines(keepends=True):
                if line.endswith(b"\n"):
                    yield "rows", line

    def check(
        self,
        within_s: float = 60.0,
        *,
        again: int = 0,
        failed: Mapping[int, str] | None = None,
        unscored: Collection[int] = (),
        steps: int = STEPS,
    ) -> None:
        """Wait for the end, then ask the oracle.

        `again`: how many model calls may have been made twice: what a gateway that died had in
        hand (`PREFETCH` each). `failed`: number of a task -> the kind of its error.
        `unscored`: tasks whose verifier fails.
        """
        self.wait(within_s)
        report = audit(self.output, expected=((i, 0) for i in range(self.tasks)))
        assert report.ok, report.problems
        rows = self.rows()
        counts = Counter(row["warren"]["rollout_id"] for row in rows)
        assert counts == Counter(f"{self.id}/{i}/0" for i in range(self.tasks))
        failed = failed or {}
        for row in rows:
            self._check_row(row, failed, unscored)
        self._check_calls(again, failed, steps)

    def _check_row(
        self, row: dict[str, Any], failed: Mapping[int, str], unscored: Collection[int]
    ) -> None:
        number, own = row["warren"]["task_index"], row["warren"]
        if number in failed:
            assert own["status"] == "failed", row
            assert own["error"]["kind"] == failed[number], own["error"]
            assert row["reward"] is None
        elif number in unscored:
            assert own["error"]["kind"] == "verifier", own
            assert row["reward"] is None
        else:
            assert own["status"] == "completed", own["error"]
            assert row["reward"] == expected_reward(number), (number, own["error"])

    def _check_calls(self, again: int, failed: Mapping[int, str], steps: int) -> None:
        model = self.cluster.model
        asked = {
            step[1:]: n
            for step, n in model.asked.items()
            if step[0] == self.id and step[2].startswith("step")
        }
        for number in set(range(self.tasks)) - set(failed):
            made = sum(step[0] == number for step in asked)
            assert made == steps, f"task {number}: {made} of {steps} steps"
        twice = {step: n for step, n in asked.items() if n > 1}
        repeated = sum(n - 1 for n in twice.values())
        assert repeated <= again, f"{repeated} model calls repeated, {again} allowed: {twice}"


def expected_reward(number: int) -> float:
    """What the test environments give."""
    return 0.25 + (number % 4) / 4 * 0.75


@dataclass(eq=False)
class Cluster:
    """Processes over one broker, one Redis and one model; all end with the context."""

    folder: Path
    rabbitmq: RabbitServer
    redis: RedisServer
    background: Background
    model: ModelServer
    workers: dict[str, list[Worker]] = field(default_factory=lambda: {k: [] for k in KINDS})
    environment: str = "lookup"
    broker_url: str = ""
    redis_url: str = ""
    runs: list[Run] = field(default_factory=list)
    _count: "itertools.count[int]" = field(default_factory=itertools.count)
    _commands: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.broker_url = self.broker_url or self.rabbitmq.url
        self.redis_url = self.redis_url or self.redis.url
        names = ("m", "judge")
        toml = "\n".join(f'[models.{n}]\nbase_urls = ["{self.model.url}"]' for n in names)
        (self.folder / "warren.toml").write_text(toml, encoding="utf-8")

    # -- processes

    def start(
        self,
        *kinds: str,
        flags: Sequence[str] = (),
        keep: bool = False,
        prefetch: int = PREFETCH,
        **variables: str,
    ) -> list[Worker]:
        """Start one worker of each kind and wait until all of them serve."""
        started = [self._start(kind, flags, keep, prefetch, variables) for kind in kinds]
        self.until(lambda: all(w.said("worker started") for w in started), READY_S, self._dead)
        return started

    def _start(
        self,
        kind: str,
        flags: Sequence[str],
        keep: bool,
        prefetch: int,
        variables: Mapping[str, str],
    ) -> Worker:
        words = ["worker", kind, *flags, "--prefetch", str(prefetch)]
        if kind == "sink":
            words += ["--output", str(self.folder / "rows")]
        elif kind != "model":
            words += ["--env", self.environment_file]
        log = self.folder / f"{kind}-{next(self._count)}.log"
        process = self._spawn(words, log, variables)
        again = lambda: self._start(kind, flags, keep, prefetch, {})  # noqa: E731
        worker = Worker(kind, process, log, again, keep)
        self.workers[kind].append(worker)
        return worker

    @property
    def environment_file(self) -> str:
        return str(ENVIRONMENTS / f"{self.environment}.py")

    def _spawn(
        self, words: Sequence[str], log: Path, variables: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("WARREN_")},
            "WARREN_BROKER": self.broker_url,
            "WARREN_REDIS": self.redis_url,
            "PYTHONFAULTHANDLER": "1",
            **variables,
        }
        with log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "warren", *words],
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._commands.append(process)
        return process

    def command(self, *words: str) -> str:
        """Run a command of `warren` to its end; what it printed."""
        log = self.folder / f"command-{next(self._count)}.log"
        process = self._spawn(words, log, {})
        assert process.wait(60) == 0, log.read_text(errors="replace")
        return log.read_text()

    def kill(self, worker: Worker) -> None:
        """kill -9, of the worker and all that it started."""
        os.killpg(worker.process.pid, signal.SIGKILL)
        worker.process.wait(10)
        self._forget(worker)

    def stop(self, worker: Worker) -> float:
        """SIGTERM; the seconds that it took to end. It must end well."""
        began = time.monotonic()
        worker.signal(signal.SIGTERM)
        assert worker.process.wait(30) == 0, worker.log.read_text(errors="replace")[-3000:]
        self._forget(worker)
        return time.monotonic() - began

    def _forget(self, worker: Worker) -> None:
        if worker in self.workers[worker.kind]:
            self.workers[worker.kind].remove(worker)

    def living(self, kind: str) -> list[Worker]:
        """The workers of a kind that run."""
        return [w for w in self.workers[kind] if w.alive]

    def restore(self, each: int = 2) -> None:
        """As many workers of every kind as a test expects at its start; sinks: one."""
        missing = []
        for kind in KINDS:
            for worker in [w for w in self.workers[kind] if not w.alive]:
                self._forget(worker)
            want = 1 if kind == "sink" else each
            missing += [kind] * (want - len(self.workers[kind]))
        if missing:
            self.start(*missing)
        self.model.reset()

    def settle(self) -> None:
        """End what a test that failed has left running."""
        for run in self.runs:
            if run.process.poll() is None:
                os.killpg(run.process.pid, signal.SIGKILL)
                run.process.wait(10)
        self.runs.clear()

    # -- runs

    def tasks(self, run: str, count: int, **more: Any) -> Path:
        """A dataset of so many tasks; `more` goes into every row."""
        path = self.folder / f"tasks-{next(self._count)}.jsonl"
        with path.open("w", encoding="utf-8") as file:
            for number in range(count):
                asked = {"input": f"This is task {number} of {run}"}
                row = {"responses_create_params": asked, "number": number, **more}
                file.write(json.dumps(row) + "\n")
        return path

    def enqueue(self, count: int, *flags: str, tasks: Path | None = None, **more: Any) -> Run:
        """Start a run; standing sinks write its rows."""
        run = f"run-{uuid.uuid4().hex[:8]}"
        file = tasks or self.tasks(run, count, **more)
        words = ["enqueue", str(file), "--env", self.environment_file, "--model", "m"]
        words += ["--run", run, "--wait", "--json", "-q", *flags]
        log = self.folder / f"{run}.log"
        process = self._spawn(words, log, {})
        return self._follow(Run(self, run, count, process, self.folder / "rows" / run, log))

    def collect(
        self,
        count: int,
        *flags: str,
        output: Path | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> Run:
        """Start `warren collect` over external workers."""
        run = f"run-{uuid.uuid4().hex[:8]}"
        variables = variables or {}
        output = output or self.folder / f"{run}.jsonl"
        words = ["collect", str(self.tasks(run, count)), "--env", self.environment_file]
        words += ["--model", "m", "--run", run, "-o", str(output), "--json", "-q", *flags]
        log = self.folder / f"{run}.log"
        process = self._spawn(words, log, variables)
        again = {k: v for k, v in variables.items() if k != "WARREN_CRASHPOINT"}
        return self._follow(Run(self, run, count, process, output, log, tuple(words), again))

    def _follow(self, run: Run) -> Run:
        self.runs.append(run)
        return run

    def go_on(self, run: Run) -> None:
        """Type the run's command again, after it was killed."""
        run.process = self._spawn(run.command, run.log, run.variables)

    # -- time

    def until(
        self,
        condition: Callable[[], bool],
        within_s: float = 30.0,
        describe: Callable[[], str] = str,
    ) -> float:
        """Wait for it; the seconds that it took. Acts as supervisor of workers to keep."""
        began = time.monotonic()
        while not condition():
            assert time.monotonic() - began < within_s, f"not within {within_s} s: {describe()}"
            self._supervise()
            time.sleep(0.02)
        return time.monotonic() - began

    def _supervise(self) -> None:
        for worker in [w for kind in KINDS for w in self.workers[kind] if w.keep and not w.alive]:
            self._forget(worker)
            worker.start_again()

    def _dead(self) -> str:
        dead = [w for kind in KINDS for w in self.workers[kind] if not w.alive]
        return "\n".join(w.log.read_text(errors="replace")[-2000:] for w in dead) or "all alive"

    def answered(self, count: int, within_s: float = 30.0) -> None:
        """Wait until the model has answered so often: a run is well under way."""
        self.until(lambda: self.model.answered.total() >= count, within_s, self._dead)

    def back_to_work(self, within_s: float = 10.0) -> float:
        """Wait for the first new answers since now; the seconds that it took."""
        seen = self.model.answered.total()
        return self.until(lambda: self.model.answered.total() >= seen + 5, within_s, self._dead)

    def redis_say(self, command: str) -> None:
        """Send Redis one command."""
        with socket.create_connection(("127.0.0.1", self.redis.port), timeout=10) as connection:
            connection.sendall(command.encode() + b"\r\n")
            assert connection.recv(64).startswith(b"+"), command

    def proxy(self, server: RabbitServer | RedisServer) -> Proxy:
        """A proxy before this server, until the cluster ends."""
        return self.background.enter(proxy_to("127.0.0.1", server.port))

    def end(self) -> None:
        """Kill everything that was started."""
        for process in self._commands:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        for process in self._commands:
            process.wait(10)


@contextmanager
def cluster(
    folder: Path, rabbitmq: RabbitServer, redis: RedisServer, environment: str = "lookup"
) -> Generator[Cluster]:
    """Nothing runs yet but the model."""
    background = Background()
    model = ModelServer()
    try:
        background.enter(model.serving())
        made = Cluster(folder, rabbitmq, redis, background, model, environment=environment)
        try:
            yield made
        finally:
            made.end()
    finally:
        background.close()
