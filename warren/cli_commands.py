"""The command line as data: every command, its options, and how they become its dataclass."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from broker.errors import UsageError
from broker.messages import Budget, Limits, Sampling, Waits
from warren.examples import read_examples
from warren.options import (
    WORKER_KINDS,
    AuditOptions,
    CancelOptions,
    CollectOptions,
    DemoOptions,
    DlqAction,
    DlqOptions,
    EnqueueOptions,
    EnvInitOptions,
    EnvListOptions,
    EnvTestOptions,
    PolicyUpdateOptions,
    ReverifyOptions,
    RunsOptions,
    WorkerKind,
    WorkerOptions,
)
from warren.run_keys import WAITS
from warren.settings import Settings
from warren.values import Values


@dataclass(frozen=True, slots=True)
class Given:
    """What a command's options are made from."""

    words: Mapping[str, Any]
    """Positional arguments by name; a list where `many`."""
    values: Values
    settings: Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """A positional argument."""

    name: str
    help: str
    optional: bool = False
    many: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One command: what to type, what it takes, and the function that does it."""

    name: str
    """`collect`, `worker agent`, ..."""
    help: str
    target: str
    """`module:function`, imported only when the command runs."""
    build: Callable[[Given], Any]
    words: tuple[Word, ...] = ()
    keys: tuple[str, ...] = ()
    """Names in keys.KEYS."""
    example: str = ""
    hidden: bool = False
    log_level: str = "warning"


_EVERYWHERE: Final = ("log_json", "log_level")
_PLACE: Final = ("broker", "redis", "topology")
_ENDPOINT: Final = (
    *("model", "base_url", "api_key_env", "api_key_file", "api", "model_path", "engine_args"),
)
_METRICS: Final = ("metrics_port", "metrics_host")
_RUN: Final = (
    "environment",
    *(*_ENDPOINT, "judge_model", "judge_base_url"),
    *("run_id", "repeats", "limit", "temperature", "top_p", "max_output_tokens", "seed"),
    *("max_steps", "timeout", "call_timeout", "max_total_tokens", "system_prompt", "examples"),
    *("max_cost", "max_tokens", "task_wait", "model_wait", "tool_wait", "verify_wait"),
    *("window", "max_failed", "skip_bad", "retry_failed", "quiet", "json"),
)

_TASKS: Final = Word(name="tasks", help="dataset, one JSON object per line; - for standard input")


def _run_options(given: Given) -> dict[str, Any]:
    get = given.values.get
    same = ("run_id", "repeats", "limit", "window", "max_failed", "skip_bad", "retry_failed")
    return {
        "tasks": given.words["tasks"],
        "environment": _environment(given),
        "model": _model(given.settings),
        "sampling": Sampling(
            temperature=get("temperature"),
            top_p=get("top_p"),
            max_output_tokens=get("max_output_tokens"),
            seed=get("seed"),
        ),
        "limits": Limits(
            max_steps=get("max_steps"),
            timeout_s=get("timeout"),
            call_timeout_s=get("call_timeout"),
            max_total_tokens=get("max_total_tokens"),
            waits=Waits(**{f"{kind}_s": get(f"{kind}_wait") for kind in WAITS}),
        ),
        "budget": Budget(max_tokens=get("max_tokens"), max_cost_usd=get("max_cost")),
        "judge_model": get("judge_model"),
        "system_prompt": _system_prompt(get("system_prompt")),
        "examples": None if get("examples") is None else read_examples(get("examples")),
        **{name: get(name) for name in (*same, "quiet", "json")},
    }


def _environment(given: Given) -> str:
    named = given.values.get("environment")
    known = given.settings.environments
    if named is not None:
        return str(named)
    if len(known) == 1:
        return known[0]
    raise UsageError(
        "--env is missing: name an environment (`warren env list` shows them)"
        " or a file, path/to/file.py[:name]"
    )


def _model(settings: Settings) -> str:
    if settings.model is not None:
        return settings.model
    if len(settings.models) == 1:
        return next(iter(settings.models))
    known = "; known: " + ", ".join(sorted(settings.models)) if settings.models else ""
    raise UsageError(
        "--model is missing: name the model that plays, with --base-url for your own server,"
        f" or `scripted` for the environment's own policy{known}"
    )


def _system_prompt(typed: str | None) -> str | None:
    if typed is None or "\n" in typed or len(typed) > 1000 or not Path(typed).is_file():
        return typed
    return Path(typed).read_text(encoding="utf-8")


def _need(settings: Settings, command: str, *names: str) -> None:
    examples = {"broker": "amqp://user:password@host", "redis": "redis://host"}
    for name in names:
        if getattr(settings, name) is None:
            raise UsageError(
                f"`warren {command}` needs --{name} {examples[name]}"
                f" (or WARREN_{name.upper()}, or `{name}` in warren.toml)"
            )


def _collect(given: Given) -> CollectOptions:
    get = given.values.get
    if get("output") is None:
        raise UsageError("-o is missing: name the file for the rows, like -o rollouts.jsonl")
    if get("workers") == "external":
        _need(given.settings, "collect --workers external", "broker", "redis")
    if given.settings.broker is not None:
        _need(given.settings, "collect --broker", "redis")  # other workers there must share it
    if get("failures") == get("output"):
        raise UsageError("--failures and -o name the same file; leave --failures out for that")
    own = ("output", "failures", "concurrency", "workers", "overwrite")
    return CollectOptions(**_run_options(given), **{name: get(name) for name in own})


def _enqueue(given: Given) -> EnqueueOptions:
    _need(given.settings, "enqueue", "broker", "redis")
    return EnqueueOptions(**_run_options(given), wait=given.values.get("wait"))


def _worker(kind: WorkerKind) -> Callable[[Given], WorkerOptions]:
    def build(given: Given) -> WorkerOptions:
        get, settings = given.values.get, given.settings
        _need(settings, f"worker {kind}", "broker", "redis")
        if kind == "model" and settings.model is None and not settings.models:
            raise UsageError("--model is missing: name a model, or list some in warren.toml")
        return WorkerOptions(
            kind=kind,
            environments=get("environments"),
            models=_models(settings) if kind == "model" else (),
            prefetch=get("prefetch") or settings.prefetch[kind],
        )

    return build


def _sink(given: Given) -> WorkerOptions:
    get = given.values.get
    _need(given.settings, "worker sink", "broker", "redis")
    if get("output") is None:
        raise UsageError("--output is missing: rows go to OUTPUT/<run>/")
    return WorkerOptions(kind="sink", output=get("output"), format=get("format"))


def _models(settings: Settings) -> tuple[str, ...]:
    return (settings.model,) if settings.model else tuple(settings.models)


def _runs(given: Given) -> RunsOptions:
    _need(given.settings, "runs", "redis")
    return RunsOptions(run=given.words["run"], json=given.values.get("json"))


def _cancel(given: Given) -> CancelOptions:
    _need(given.settings, "cancel", "redis")
    return CancelOptions(run=given.words["run"], json=given.values.get("json"))


def _policy_update(given: Given) -> PolicyUpdateOptions:
    get = given.values.get
    _need(given.settings, "policy update", "broker", "redis")
    if get("policy_version") is None or get("weights") is None:
        raise UsageError("`warren policy update` needs --version N and --path DIR")
    return PolicyUpdateOptions(
        model=_model(given.settings),
        version=get("policy_version"),
        path=get("weights"),
        mode=get("mode"),
        json=get("json"),
    )


def _audit(given: Given) -> AuditOptions:
    return AuditOptions(output=Path(given.words["output"]), json=given.values.get("json"))


def _reverify(given: Given) -> ReverifyOptions:
    get = given.values.get
    if get("environment") is None:
        raise UsageError("--env is missing: name the environment that scores the rollouts")
    if get("output") is None:
        raise UsageError("-o is missing: name the file for the newly scored rows")
    return ReverifyOptions(
        rollouts=Path(given.words["rollouts"]),
        judge_model=get("judge_model"),
        **{n: get(n) for n in ("environment", "output", "concurrency", "quiet", "json")},
    )


def _dlq(action: DlqAction) -> Callable[[Given], DlqOptions]:
    def build(given: Given) -> DlqOptions:
        get = given.values.get
        _need(given.settings, f"dlq {action}", "broker", "redis")
        ids, every = tuple(given.words.get("ids", ())), bool(get("every"))
        if action in {"replay", "drop"} and bool(ids) == every:
            raise UsageError(f"`warren dlq {action}` takes either ids or --all")
        return DlqOptions(
            action=action,
            ids=ids,
            every=every,
            run=get("run_id"),
            limit=get("limit") or 50,
            json=get("json"),
        )

    return build


def _env_init(given: Given) -> EnvInitOptions:
    directory = given.words["directory"]
    return EnvInitOptions(name=given.words["name"], directory=Path(directory or "."))


def _env_test(given: Given) -> EnvTestOptions:
    get = given.values.get
    return EnvTestOptions(
        environment=given.words["environment"],
        tasks=given.words["tasks"],
        limit=get("limit"),
        json=get("json"),
    )


def _env_list(given: Given) -> EnvListOptions:
    return EnvListOptions(json=given.values.get("json"))


def _demo(given: Given) -> DemoOptions:
    get = given.values.get
    return DemoOptions(
        output=get("output") or Path("demo"),
        repeats=get("repeats") if get("repeats") > 1 else 4,
        quiet=get("quiet"),
        json=get("json"),
    )


_WORKER_HELP: Final[Mapping[WorkerKind, str]] = {
    "agent": "run rollouts",
    "tool": "execute tool calls",
    "model": "ask models: the gateway",
    "verifier": "score trajectories",
    "sink": "write rows to OUTPUT/<run>/",
}
_WORKER_KEYS: Final[Mapping[WorkerKind, tuple[str, ...]]] = {
    "agent": ("environments", "prefetch", "renew_after"),
    "tool": ("environments", "prefetch", "unsafe_no_sandbox"),
    "model": ("environments", "prefetch", *_ENDPOINT),
    "verifier": ("environments", "prefetch", "unsafe_no_sandbox"),
    "sink": ("output", "format"),
}
_DLQ_HELP: Final[Mapping[DlqAction, str]] = {
    "list": "show what is kept, and why it died",
    "show": "show messages in full",
    "replay": "run them again, as new attempts",
    "drop": "delete them for good",
}
_IDS: Final = Word(name="ids", help="as `warren dlq list` shows them", many=True)


def _worker_commands() -> list[Command]:
    return [
        Command(
            name=f"worker {kind}",
            help=_WORKER_HELP[kind],
            target="warren.commands.worker:run",
            build=_sink if kind == "sink" else _worker(kind),
            keys=(*_WORKER_KEYS[kind], *_PLACE, *_METRICS, *_EVERYWHERE),
            log_level="info",
        )
        for kind in WORKER_KINDS
    ]


def _dlq_commands() -> list[Command]:
    return [
        Command(
            name=f"dlq {action}",
            help=_DLQ_HELP[action],
            target="warren.commands.dlq:run",
            build=_dlq(action),
            words=() if action == "list" else (_IDS,),
            keys=(
                *(("limit",) if action == "list" else ()),
                *(("every",) if action in {"replay", "drop"} else ()),
                *("run_id", "json", *_PLACE, *_EVERYWHERE),
            ),
        )
        for action in _DLQ_HELP
    ]


COMMANDS: Final[Mapping[str, Command]] = {
    command.name: command
    for command in (
        Command(
            name="collect",
            help="run the tasks' rollouts and write them: all in one",
            target="warren.commands.collect:run",
            build=_collect,
            words=(_TASKS,),
            keys=(
                *("output", *_RUN, "concurrency", "workers", "overwrite", "failures"),
                *("unsafe_no_sandbox", *_PLACE, *_METRICS, "renew_after", *_EVERYWHERE),
            ),
            example="warren collect tasks.jsonl --env calculator --model scripted -o out.jsonl",
        ),
        Command(
            name="enqueue",
            help="publish the tasks for running workers; standing sinks write the rows",
            target="warren.commands.enqueue:run",
            build=_enqueue,
            words=(_TASKS,),
            keys=(*_RUN, "wait", *_PLACE, *_EVERYWHERE),
            example="warren enqueue tasks.jsonl --env calculator --model M --run r1 --wait",
        ),
        *_worker_commands(),
        Command(
            name="runs",
            help="how the known runs stand, or one of them",
            target="warren.commands.runs:run",
            build=_runs,
            words=(Word(name="run", help="only this run", optional=True),),
            keys=("json", *_PLACE, *_EVERYWHERE),
        ),
        Command(
            name="cancel",
            help="stop a run: its queued tasks become cancelled rows",
            target="warren.commands.cancel:run",
            build=_cancel,
            words=(Word(name="run", help="the run's name"),),
            keys=("json", *_PLACE, *_EVERYWHERE),
        ),
        Command(
            name="policy update",
            help="have every endpoint of a model load new weights while rollouts run",
            target="warren.commands.policy_update:run",
            build=_policy_update,
            keys=("model", "policy_version", "weights", "mode", "json", *_PLACE, *_EVERYWHERE),
            example="warren policy update --model M --version 7 --path /weights/7 --mode wait",
        ),
        Command(
            name="audit",
            help="check every part and every rollout of an output",
            target="warren.commands.audit:run",
            build=_audit,
            words=(Word(name="output", help="what collect or a sink wrote"),),
            keys=("json", *_EVERYWHERE),
        ),
        Command(
            name="reverify",
            help="score stored rollouts again, without running agents",
            target="warren.commands.reverify:run",
            build=_reverify,
            words=(Word(name="rollouts", help="what collect or a sink wrote"),),
            keys=(
                *("environment", "output", "judge_model", "judge_base_url"),
                *("concurrency", "quiet", "json", "unsafe_no_sandbox", *_EVERYWHERE),
            ),
            example="warren reverify rollouts.jsonl --env calculator -o rescored.jsonl",
        ),
        *_dlq_commands(),
        Command(
            name="env init",
            help="write a working environment to start from",
            target="warren.commands.env_init:run",
            build=_env_init,
            words=(
                Word(name="name", help="its name, [a-z0-9_-]{1,64}"),
                Word(name="directory", help="where (default: here)", optional=True),
            ),
            keys=_EVERYWHERE,
        ),
        Command(
            name="env test",
            help="run an environment's tasks on its scripted policy and say what is wrong",
            target="warren.commands.env_test:run",
            build=_env_test,
            words=(
                Word(name="environment", help="a name, or path/to/file.py[:name]"),
                Word(name="tasks", help="default: the examples beside it", optional=True),
            ),
            keys=("limit", "json", *_EVERYWHERE),
        ),
        Command(
            name="env list",
            help="the environments that are known",
            target="warren.commands.env_list:run",
            build=_env_list,
            keys=("json", *_EVERYWHERE),
        ),
        Command(
            name="demo",
            help="collect the shipped example tasks",
            target="warren.commands.demo:run",
            build=_demo,
            keys=("output", "repeats", "quiet", "json", *_EVERYWHERE),
            hidden=True,
        ),
    )
}
