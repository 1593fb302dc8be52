"""Warren as it is deployed, for tests that kill it: every worker a process, a counting model.

    with cluster(folder, rabbitmq, redis) as warren:
        warren.start("agent", "tool", "model", "verifier", "sink")
        run = warren.enqueue(200)
        warren.kill(warren.workers["agent"][0])
        run.check()

`check` asks the oracle of all fault tests (oracle.py).
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

from tests.support.background import Background
from tests.support.model_server import Asked, ModelServer, Step
from tests.support.oracle import STEPS, Ended
from tests.support.proxy import Proxy, proxy_to
from tests.support.recorded import Recorded, recorded_in_redis, recorded_in_sqlite
from tests.support.runs import PATIENCE_S, Run, Worker
from tests.support.services import Container, RabbitProcess, RedisProcess

ENVIRONMENTS: Final = Path(__file__).parent.parent / "faults" / "environments"
#: Every worker serves all of them.
GAMES: Final = ("lookup", "ledger", "till", "judged", "poison")
KINDS: Final = ("agent", "tool", "model", "verifier", "sink")
PREFETCH: Final = 32
#: What an interpreter alone takes on a loaded machine is not the worker's.
EXIT_S: Final = 5.0
#: What a worker that is told to stop gives to what it has in hand (broker/serve.py).
GRACE_S: Final = 2.0

RabbitServer = RabbitProcess | Container
RedisServer = RedisProcess | Container


@dataclass(eq=False)
class Cluster:
    """Processes over one broker, one Redis and one model; all end with the context."""

    folder: Path
    rabbitmq: RabbitServer
    redis: RedisServer
    background: Background
    model: ModelServer
    workers: dict[str, list[Worker]] = field(default_factory=lambda: {k: [] for k in KINDS})
    broker_url: str = ""
    redis_url: str = ""
    try_timeout_s: float = 600.0
    """What a gateway gives the model for an answer."""
    runs: list[Run] = field(default_factory=list)
    forgot: bool = False
    """Whether Redis was emptied: what it had recorded can't be told any more."""
    gone: list[Ended] = field(default_factory=list)
    """The gateways that have ended."""
    _count: "itertools.count[int]" = field(default_factory=itertools.count)
    _commands: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.broker_url = self.broker_url or self.rabbitmq.url
        self.redis_url = self.redis_url or self.redis.url
        names = ("m", "judge")
        served = f'base_urls = ["{self.model.url}"]\napi_key_env = "PROCESS_NAME"'
        served += f"\ntry_timeout_s = {self.try_timeout_s}"
        toml = "\n".join(f"[models.{name}]\n{served}" for name in names)
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
        self.until(lambda: all(w.said("worker started") for w in started), describe=self._dead)
        return started

    def _start(
        self,
        kind: str,
        flags: Sequence[str],
        keep: bool,
        prefetch: int,
        variables: Mapping[str, str],
    ) -> Worker:
        words = ["worker", kind, *flags]
        if kind == "sink":
            words += ["--output", str(self.folder / "rows")]
        else:
            words += ["--prefetch", str(prefetch)]
        if kind not in {"sink", "model"}:
            words += [word for game in GAMES for word in ("--env", file_of(game))]
        name = f"{kind}-{next(self._count)}"
        log = self.folder / f"{name}.log"
        process = self._spawn(words, log, variables, name)
        again = lambda: self._start(kind, flags, True, prefetch, {})  # noqa: E731
        worker = Worker(kind, name, process, log, again, keep)
        self.workers[kind].append(worker)
        return worker

    def _spawn(
        self, words: Sequence[str], log: Path, variables: Mapping[str, str], name: str
    ) -> subprocess.Popen[bytes]:
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("WARREN_")},
            "WARREN_BROKER": self.broker_url,
            "WARREN_REDIS": self.redis_url,
            "PYTHONFAULTHANDLER": "1",
            "PROCESS_NAME": name,
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
        process = self._spawn(words, log, {}, log.stem)
        assert process.wait(60) == 0, log.read_text(errors="replace")
        return log.read_text()

    def kill(self, worker: Worker) -> None:
        """kill -9, of the worker and all that it started."""
        os.killpg(worker.process.pid, signal.SIGKILL)
        worker.process.wait(10)
        self._forget(worker)
        if worker.kind == "model":
            self._excuse(worker.name)

    def kill_command(self, run: Run) -> None:
        """kill -9 of the command that follows a run, with the workers that it hosts."""
        os.killpg(run.process.pid, signal.SIGKILL)
        run.process.wait(10)
        self._excuse(run.name)

    def freeze(self, worker: Worker) -> None:
        """SIGSTOP; what a frozen gateway had in hand may be asked for again."""
        worker.signal(signal.SIGSTOP)
        self._excuse(worker.name)

    def ended(self, worker: Worker) -> None:
        """A worker died by itself: what it had in hand may be asked for again."""
        worker.process.wait(10)
        self._forget(worker)
        self._excuse(worker.name)

    def stop(self, worker: Worker) -> float:
        """SIGTERM; the seconds that it took to end. It must end well.

        A gateway may only leave what the model did not answer within half of its grace.
        """
        began = time.monotonic()
        worker.signal(signal.SIGTERM)
        assert worker.process.wait(30) == 0, worker.log.read_text(errors="replace")[-3000:]
        took_s = time.monotonic() - began
        self._forget(worker)
        if worker.kind == "model":
            soon = began + GRACE_S / 2
            left = self._excuse(worker.name)
            wasted = [a for a in left if a.answered_at is not None and a.answered_at < soon]
            assert self.forgot or not wasted, f"answered in time and not recorded: {wasted}"
        return took_s

    def _excuse(self, gateway: str) -> list[Asked]:
        """What this process, which is dead, had in hand may be asked for once more."""
        ended = [Ended.now(self.model, gateway, run.id, self._recorded(run)) for run in self.runs]
        self.gone += ended
        return [ask for each in ended for ask in each.lost(self.model)]

    @property
    def excused(self) -> Counter[Step]:
        """Steps that gateways which ended had in hand: each may be asked for once more."""
        return Counter(ask.step for each in self.gone for ask in each.lost(self.model))

    def _recorded(self, run: Run) -> Recorded:
        file = run.output.with_name(f"{run.output.name}.journal.sqlite")
        if run.variables.get("WARREN_REDIS") == "":
            return recorded_in_sqlite(file) if file.exists() else Recorded()
        return recorded_in_redis(self.redis.url, run.id)

    def history(self, steps: Collection[Step]) -> str:
        """When each of these was asked for, by whom, and when it was answered."""
        return "; ".join(
            f"{ask.step[1:]} {ask.gateway} {ask.at:.2f}-{ask.answered_at or 0:.2f}"
            for ask in self.model.asks
            if ask.step in steps
        )

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
            for worker in self.workers[kind]:
                worker.keep = False
            want = 1 if kind == "sink" else each
            missing += [kind] * (want - len(self.workers[kind]))
        if missing:
            self.start(*missing)
        self.model.reset()
        self.gone.clear()
        self.forgot = False

    def supervise(self) -> None:
        """From now on a worker that ends is started again, until the next `restore`."""
        for workers in self.workers.values():
            for worker in workers:
                worker.keep = True

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
                row = {"responses_create_params": asked, "number": number, "run": run, **more}
                file.write(json.dumps(row) + "\n")
        return path

    def enqueue(
        self, count: int, *flags: str, game: str = "lookup", steps: int = STEPS, **more: Any
    ) -> Run:
        """Start a run; standing sinks write its rows. `more` goes into every row."""
        run = f"run-{uuid.uuid4().hex[:8]}"
        file = self.tasks(run, count, **more)
        words = ["enqueue", str(file), "--env", file_of(game), "--model", "m"]
        words += ["--run", run, "--wait", "--json", "-q", *flags]
        log = self.folder / f"{run}.log"
        process = self._spawn(words, log, {}, f"{run}-1")
        output = self.folder / "rows" / run
        return self._follow(Run(self, run, count, process, output, log, tuple(words), steps=steps))

    def collect(
        self,
        count: int,
        *flags: str,
        output: Path | None = None,
        variables: Mapping[str, str] | None = None,
        game: str = "lookup",
    ) -> Run:
        """Start `warren collect` over external workers."""
        run = f"run-{uuid.uuid4().hex[:8]}"
        variables = variables or {}
        output = output or self.folder / f"{run}.jsonl"
        words = ["collect", str(self.tasks(run, count)), "--env", file_of(game)]
        words += ["--model", "m", "--run", run, "-o", str(output), "--json", "-q", *flags]
        log = self.folder / f"{run}.log"
        process = self._spawn(words, log, variables, f"{run}-1")
        again = {k: v for k, v in variables.items() if k != "WARREN_CRASHPOINT"}
        return self._follow(Run(self, run, count, process, output, log, tuple(words), again))

    def _follow(self, run: Run) -> Run:
        self.runs.append(run)
        return run

    def go_on(self, run: Run) -> None:
        """Type the run's command again, after it was killed."""
        run.starts += 1
        run.process = self._spawn(run.command, run.log, run.variables, run.name)

    # -- time

    def until(
        self,
        condition: Callable[[], bool],
        within_s: float = PATIENCE_S,
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

    def answered(self, count: int, within_s: float = PATIENCE_S) -> None:
        """Wait until the model has answered so often: a run is well under way."""
        self.until(lambda: self.model.answered.total() >= count, within_s, self._dead)

    def back_to_work(self, run: Run, within_s: float = PATIENCE_S) -> float:
        """Wait for new answers since now, unless the run has all of its; seconds that it took."""
        seen = self.model.answered.total()
        return self.until(
            lambda: self.model.answered.total() >= seen + 5 or run.all_answered(),
            within_s,
            self._dead,
        )

    def redis_say(self, command: str) -> None:
        """Send Redis one command."""
        self.forgot |= command == "FLUSHALL"
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


def file_of(game: str) -> str:
    """What `--env` takes for one of our environments."""
    return str(ENVIRONMENTS / f"{game}.py")


@contextmanager
def cluster(
    folder: Path, rabbitmq: RabbitServer, redis: RedisServer, *, try_timeout_s: float = 600.0
) -> Generator[Cluster]:
    """Nothing runs yet but the model."""
    background = Background()
    model = ModelServer()
    try:
        background.enter(model.serving())
        made = Cluster(folder, rabbitmq, redis, background, model, try_timeout_s=try_timeout_s)
        try:
            yield made
        finally:
            made.end()
    finally:
        background.close()
