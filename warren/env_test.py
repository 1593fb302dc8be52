"""Tries an environment: plays its tasks on its scripted policy, embedded, and says what is wrong.

Everything is real but the model: queues, journal, agent, tools and verifiers. It plays twice, and
whatever differs is not deterministic. After the first time other workers get the same tasks and the
journal, as after a crash: an agent that then asks anything else than before would lose rollouts.
"""

import asyncio
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from broker import codec
from broker.base import Delivery, Outgoing
from broker.journal.memory import MemoryJournal, MemoryRuns
from broker.memory import MemoryBroker
from broker.messages import Result, Task, ToolResult, Trajectory
from broker.results import read_result
from broker.serve import Ack, Outcome, Source, serve
from broker.topology import TASK, run_results_queue, task_key
from broker.trajectory import forest, main_transcript
from warren.collecting import run_queues
from warren.connections import Connections
from warren.environment import Environment
from warren.hosting import Plan, open_all
from workers.agent.prompt import row_items
from workers.spec import EnvironmentSpec

REPEATS: Final = 4
#: A scripted policy answers at once; what takes longer than this over all tasks hangs.
DEADLINE_S: Final = 120.0
_RUN: Final = "env-test"
#: What names a call or answer, and so differs between two runs.
_IDS: Final = {"id", "call_id", "status"}


@dataclass(frozen=True, slots=True)
class Played:
    """One rollout, read from its result."""

    task_index: int
    repeat: int
    status: str
    reward: float | None
    errors: tuple[str, ...]
    said: tuple[str, ...]
    """Its items without ids, as JSON."""
    tool_seconds: tuple[tuple[str, float], ...]
    verdict_seconds: float


@dataclass(slots=True)
class Report:
    """What came out. Problems make the environment unfit; notes are worth a look."""

    environment: str
    tasks: int = 0
    rollouts: int = 0
    mean_reward: float | None = None
    tool_seconds: dict[str, float] = field(default_factory=dict)
    """Slowest call of each tool."""
    verdict_seconds: float = 0.0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


async def try_environment(environment: Environment, rows: Sequence[bytes]) -> Report:
    """Play these task rows. Raises InvalidEnvironment where it can't even be put together."""
    spec = environment.spec()
    report = Report(spec.name, tasks=len(rows))
    _look_at_declarations(spec, report)
    rows = _look_at_rows(rows, report)
    if spec.policy is None:
        report.notes.append("there is no @env.policy, so nothing was played: only checked")
    elif rows:
        await _play_and_compare(spec, rows, report)
    return report


def _look_at_declarations(spec: EnvironmentSpec, report: Report) -> None:
    if not spec.rewards:
        report.problems.append("there is no @env.reward: every rollout would have reward null")
    for tool in spec.tools.values():
        if not tool.description:
            report.notes.append(f"tool {tool.name!r} has no docstring: the model won't know it")
        for name, schema in tool.parameters.get("properties", {}).items():
            if "description" not in schema and "$ref" not in schema:
                report.notes.append(
                    f"tool {tool.name!r}: `{name}` is not described; add it to the Args section"
                )


def _look_at_rows(rows: Sequence[bytes], report: Report) -> list[bytes]:
    if not rows:
        report.problems.append("there are no tasks: name a file, or set `tasks=` in Environment")
    good = []
    for number, row in enumerate(rows, start=1):
        try:
            prompt = row_items(json.loads(row))
        except (ValueError, AttributeError, TypeError) as e:
            report.problems.append(f"task {number} is no JSON object with a prompt: {e}")
            continue
        if not prompt:
            report.problems.append(f"task {number} has no responses_create_params.input")
        good.append(row)
    return good


async def _play_and_compare(spec: EnvironmentSpec, rows: Sequence[bytes], report: Report) -> None:
    try:
        async with asyncio.timeout(DEADLINE_S):
            first, replayed = await _play(spec, rows, rounds=2)
            [second] = await _play(spec, rows)
    except TimeoutError:
        report.problems.append(f"it did not finish within {DEADLINE_S:g} s: something never ends")
        return
    _account(spec, first, report)
    if not _compare(first, replayed, "replayed as after a crash", report):
        _compare(first, second, "played again", report)


async def _play(
    spec: EnvironmentSpec, rows: Sequence[bytes], rounds: int = 1
) -> list[list[Played]]:
    """All rollouts; in further rounds workers that know only the journal get the same tasks."""
    repeats = range(REPEATS)
    tasks = [_task(spec, i, repeat, row) for i, row in enumerate(rows) for repeat in repeats]
    broker, journal = MemoryBroker(), MemoryJournal()
    try:
        return [await _round(spec, tasks, broker, journal) for _ in range(rounds)]
    finally:
        await broker.close()


async def _round(
    spec: EnvironmentSpec, tasks: Sequence[Task], broker: MemoryBroker, journal: MemoryJournal
) -> list[Played]:
    arrived: asyncio.Queue[Result] = asyncio.Queue()
    stop = asyncio.Event()

    async def collect(delivery: Delivery) -> Outcome:
        arrived.put_nowait(read_result(delivery.body, delivery.kind))
        return Ack()

    results = Source(run_results_queue("collect", _RUN), 256, collect, None)
    at = Connections(broker, journal, MemoryRuns())
    await broker.declare(run_queues(tasks[0]))
    async with (
        open_all(at, Plan(environments={spec.name: spec})) as sources,
        asyncio.TaskGroup() as group,
    ):
        group.create_task(serve(broker, [*sources, results], stop=stop))
        for task in tasks:
            await _publish(broker, task)
        played = [_played(await arrived.get()) for _ in tasks]
        stop.set()
    return sorted(played, key=lambda p: (p.task_index, p.repeat))


async def _publish(broker: MemoryBroker, task: Task) -> None:
    key, kind = task_key("normal", task.environment), codec.kind_of(Task)
    await broker.publish(Outgoing(TASK.name, key, codec.encode(task), kind))


def _task(spec: EnvironmentSpec, index: int, repeat: int, row: bytes) -> Task:
    return Task(
        run=_RUN,
        generation="1",
        task_index=index,
        repeat=repeat,
        environment=spec.name,
        model=f"scripted/{spec.name}",
        row=row,
        audiences=("collect",),
    )


def _played(result: Result) -> Played:
    trajectory = codec.read(Trajectory, result.trajectory)
    nodes = forest(trajectory.calls)
    tools = [
        (n.record.name or "setup", n.result)
        for n in nodes.values()
        if isinstance(n.result, ToolResult)
    ]
    failures = [trajectory.error, result.verdict.error, *(tool.error for _, tool in tools)]
    return Played(
        task_index=result.task_index,
        repeat=result.repeat,
        status=trajectory.status,
        reward=result.verdict.reward,
        errors=tuple(f"{f.kind}: {f.message}\n{f.where}".strip() for f in failures if f),
        said=tuple(_without_ids(e.item) for e in main_transcript(trajectory, nodes)),
        tool_seconds=tuple((name, tool.seconds) for name, tool in tools),
        verdict_seconds=result.verdict.seconds,
    )


def _without_ids(item: dict[str, Any]) -> str:
    return json.dumps({k: v for k, v in item.items() if k not in _IDS}, sort_keys=True)


def _account(spec: EnvironmentSpec, played: Sequence[Played], report: Report) -> None:
    report.rollouts = len(played)
    rewards = [p.reward for p in played if p.reward is not None]
    report.mean_reward = sum(rewards) / len(rewards) if rewards else None
    report.verdict_seconds = max(p.verdict_seconds for p in played)
    slowest: dict[str, float] = defaultdict(float)
    for name, seconds in (each for p in played for each in p.tool_seconds):
        slowest[name] = max(slowest[name], seconds)
    report.tool_seconds = dict(slowest)
    _judge_errors(played, report)
    if len(set(rewards)) == 1 and len(rewards) > REPEATS:
        report.notes.append(f"every rollout got {rewards[0]:g}: a trainer learns nothing from it")
    for tool in spec.tools.values():
        if tool.name not in slowest:
            report.notes.append(f"tool {tool.name!r} was never called by the scripted policy")
        elif slowest[tool.name] > tool.timeout_s / 2:
            report.notes.append(
                f"tool {tool.name!r} took {slowest[tool.name]:.1f} s of its {tool.timeout_s:g} s"
            )


def _judge_errors(played: Sequence[Played], report: Report) -> None:
    """Each kind of error once, with how often and where first."""
    seen: dict[str, list[Played]] = defaultdict(list)
    for each in played:
        for error in each.errors:
            seen[error].append(each)
    for error, where in seen.items():
        first = f"task {where[0].task_index + 1}, repeat {where[0].repeat}"
        text = f"{error}\n(first in {first}; {len(where)} times)"
        wrong = any(each.status == "failed" or each.reward is None for each in where)
        (report.problems if wrong else report.notes).append(text)


def _compare(first: Sequence[Played], again: Sequence[Played], how: str, report: Report) -> bool:
    """Whether there is a difference; the first one says it all."""
    for one, other in zip(first, again, strict=True):
        where = f"task {one.task_index + 1}, repeat {one.repeat}, {how}"
        differing = [(a, b) for a, b in zip(one.said, other.said, strict=False) if a != b]
        if one.status != other.status:
            why = "; ".join(other.errors or one.errors)
            report.problems.append(f"{where}: {one.status} first, then {other.status}: {why}")
        elif differing:
            a, b = differing[0]
            report.problems.append(
                f"{where}: not deterministic:\n  first {a[:300]}\n  then  {b[:300]}"
            )
        elif len(one.said) != len(other.said):
            report.problems.append(f"{where}: {len(one.said)} items first, then {len(other.said)}")
        elif one.reward != other.reward:
            report.problems.append(
                f"{where}: the same rollout got reward {one.reward}, then {other.reward}"
            )
        else:
            continue
        return True
    return False
