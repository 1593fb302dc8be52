"""What each command was asked to do, as plain frozen values: the seam between CLI and commands.

`cli.py` parses flags, environment and warren.toml into one of these plus a `Settings`, imports the
command's module and calls `async def run(options, settings) -> int`; the int is the exit code.
Options say what this one command shall do; `Settings` says where things are (broker, models, ...).

A command returns EXIT_OK or EXIT_FAILED and raises for everything else: UsageError (2),
Unreachable (3). KeyboardInterrupt (130) is the CLI's.
"""

from pathlib import Path
from typing import Final, Literal

import msgspec

from broker.messages import Budget, Limits, Sampling
from broker.shared.base import PauseMode

#: Every rollout has a row.
EXIT_OK: Final = 0
#: Bad usage or bad input.
EXIT_USAGE: Final = 2
#: A broker, store or model endpoint can't be reached or refuses us.
EXIT_UNREACHABLE: Final = 3
#: More failed rollouts than --max-failed allows.
EXIT_FAILED: Final = 4
#: Ctrl-C or SIGTERM; the same command goes on.
EXIT_INTERRUPTED: Final = 130

PartFormat = Literal["jsonl.zst", "parquet"]
WorkerKind = Literal["agent", "tool", "model", "verifier", "sink"]
WORKER_KINDS: Final[tuple[WorkerKind, ...]] = ("agent", "tool", "model", "verifier", "sink")

Workers = Literal["own", "external"]
"""Whether `collect` starts all workers itself, or uses those that run already."""


class RunOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What `collect` and `enqueue` share: which rollouts to make, and how."""

    tasks: str
    """Path of the dataset, or `-` for standard input."""
    environment: str
    """As typed: a name, or `path/to/file.py[:name]`."""
    model: str
    """A model's name; `scripted` is the environment's own policy."""
    run_id: str | None = None
    """None: a new random one, or that of the run to go on with."""
    repeats: int = 1
    limit: int | None = None
    """Only the first so many input lines."""
    sampling: Sampling = msgspec.field(default_factory=Sampling)
    limits: Limits = msgspec.field(default_factory=Limits)
    budget: Budget = msgspec.field(default_factory=Budget)
    judge_model: str | None = None
    """Judges in the place of the environment's judge_model."""
    system_prompt: str | None = None
    """Replaces the environment's; already read where a file was named."""
    examples: bytes | None = None
    """Packed list of few-shot items that replace the environment's."""
    window: int | None = None
    """Most uncommitted instances at a time; None leaves it to the command."""
    max_failed: int | None = None
    """More failed rollouts than this: EXIT_FAILED. None: all may fail."""
    skip_bad: bool = False
    """Go on without the input lines that are invalid."""
    retry_failed: bool = False
    """Run the failed rollouts of an earlier call again, as new attempts."""
    quiet: bool = False
    """No progress, no summary."""
    json: bool = False
    """One JSON object as stdout's last line."""


class CollectOptions(RunOptions, frozen=True, kw_only=True):
    """`warren collect`."""

    output: Path
    """`.parquet` writes Parquet; everything else JSONL."""
    failures: Path | None = None
    """Where failed rollouts go; None: into `output` like all others."""
    concurrency: int = 64
    """How many rollouts run at once."""
    workers: Workers = "own"
    overwrite: bool = False
    """Delete what another run left at `output`."""


class EnqueueOptions(RunOptions, frozen=True, kw_only=True):
    """`warren enqueue`; standing sinks write the rows."""

    wait: bool = False
    """Return when every rollout is committed, as `collect` does."""


class WorkerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """`warren worker KIND`."""

    kind: WorkerKind
    environments: tuple[str, ...] = ()
    """As typed, or as warren.toml names them; empty: all built-in ones."""
    models: tuple[str, ...] = ()
    """Model workers: which ones; never empty for them."""
    prefetch: int = 64
    """How many deliveries to have in hand; a sink takes as many as its batches need."""
    output: Path | None = None
    """Sink workers: the root; rows go to `output/<run>/`."""
    format: PartFormat | None = None
    """Sink workers: of new parts; None: as the directory has them, in a new one jsonl.zst."""


class RunsOptions(msgspec.Struct, frozen=True, kw_only=True):
    """`warren runs`: all known runs, or one."""

    run: str | None = None
    json: bool = False


class CancelOptions(msgspec.Struct, frozen=True, kw_only=True):
    """`warren cancel RUN`."""

    run: str
    json: bool = False


class PolicyUpdateOptions(msgspec.Struct, frozen=True, kw_only=True):
    """`warren policy update`: every endpoint of a model loads new weights."""

    model: str
    version: int
    path: str
    """Directory, as the model's servers see it."""
    mode: PauseMode = "keep"
    json: bool = False


class AuditOptions(msgspec.Struct, frozen=True, kw_only=True):
    """`warren audit OUTPUT`: check every part and every id."""

    output: Path
    json: bool = False


class ReverifyOptions(msgspec.Struct, frozen=True, kw_only=True):
    """`warren reverify ROLLOUTS`: score stored rollouts again, without their agents."""

    rollouts: Path
    """What collect or a sink wrote."""
    environment: str
    """As typed."""
    output: Path
    judge_model: str | None = None
    """In the place of the environment's."""
    concurrency: int = 64
    quiet: bool = False
    json: bool = False


DlqAction = Literal["list", "show", "replay", "drop"]


class DlqOptions(msgspec.Struct, frozen=True, kw_only=True):
    """`warren dlq ACTION`."""

    action: DlqAction
    ids: tuple[str, ...] = ()
    """Message ids as `list` shows them; empty for `list`, and where `every` is set."""
    every: bool = False
    """`--all`: every message (of `run`, where one is named)."""
    run: str | None = None
    limit: int = 50
    """`list`: at most so many."""
    json: bool = False


class EnvInitOptions(msgspec.Struct, frozen=True, kw_only=True):
    """`warren env init NAME`: write a working environment to start from."""

    name: str
    directory: Path = Path()


class EnvTestOptions(msgspec.Struct, frozen=True, kw_only=True):
    """`warren env test ENV`: run its tasks on the scripted policy and say what is wrong."""

    environment: str
    tasks: str | None = None
    """None: the example tasks beside the environment's file."""
    limit: int | None = None
    json: bool = False


class EnvListOptions(msgspec.Struct, frozen=True, kw_only=True):
    """`warren env list`."""

    json: bool = False


class DemoOptions(msgspec.Struct, frozen=True, kw_only=True):
    """`warren demo`: collect the shipped example tasks, embedded."""

    output: Path = Path("demo")
    """Directory for the rollouts."""
    repeats: int = 4
    quiet: bool = False
    json: bool = False
