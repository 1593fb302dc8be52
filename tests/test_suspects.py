"""Suspects: rollouts that may kill their worker run alone, in a process that their agent ends."""

import os
from pathlib import Path

from broker import codec
from broker.base import Outgoing
from broker.journal.base import Run
from broker.memory import MemoryBroker
from broker.messages import Task
from broker.topology import TASK, task_key, task_queue
from tests.support.hand import until
from tests.support.rig import Rig, message, trajectory_of
from warren.settings import Settings
from warren.suspects import watched
from workers.spec import EnvironmentSpec

#: Its import never ends, and SIGTERM does not end it.
_STUBBORN = """
import os, pathlib, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
here = pathlib.Path({folder!r})
(here / "new").write_text(str(os.getpid()))
(here / "new").rename(here / "pid")
while True:
    time.sleep(3600)
"""


SPEC = EnvironmentSpec(name="env")


async def test_a_rollout_without_progress_runs_alone_and_then_becomes_a_failed_row() -> None:
    async with Rig(SPEC, lambda _, __: [message("done")]) as rig, rig.verifier():
        key = rig.task(0).journal_key
        for n in range(3):
            assert isinstance(await rig.journal.take(key, f"dead-{n}"), Run)
        async with rig.agent():
            await rig.submit(0, 1)
            assert (await rig.wait(1))[0].rollout_id == "r/1/0"
        run = await rig.journal.take(key, "dead-4")
        assert isinstance(run, Run)
        for _ in range(3):
            await rig.journal.strike(key, run.epoch)
        async with rig.agent(lanes=("suspect",), slots=1):
            result = (await rig.wait(2))[1]
    error = trajectory_of(result).error
    assert error is not None
    assert (error.kind, result.verdict.reward) == ("agent", None)


async def test_a_suspect_that_comes_back_from_a_held_queue_does_not_run_beside_others() -> None:
    async with Rig(SPEC, lambda _, __: [message("done")]) as rig, rig.verifier():
        suspect = rig.task(0, lane="suspect")
        body, kind = codec.encode(suspect), codec.kind_of(Task)
        await rig.node.declare([task_queue("resume", "env")])
        async with rig.agent():
            await rig.node.publish(Outgoing(TASK.name, task_key("resume", "env"), body, kind))
            await rig.submit(1)
            await rig.wait(1)
            assert not [call for call in rig.calls if call.startswith(suspect.journal_key)]
            async with rig.agent(lanes=("suspect",), slots=1):  # while the first one lives
                assert {r.rollout_id for r in await rig.wait(2)} == {"r/0/0", "r/1/0"}


async def test_a_suspects_process_that_does_not_end_is_killed_with_its_agent(
    tmp_path: Path,
) -> None:
    environment, pid = tmp_path / "stubborn.py", tmp_path / "pid"
    environment.write_text(_STUBBORN.format(folder=str(tmp_path)), encoding="utf-8")

    async def has_begun() -> bool:
        return pid.exists()

    broker = MemoryBroker()
    async with watched(broker, {"stubborn": str(environment)}, Settings(), end_s=0.2):
        await broker.declare([task_queue("suspect", "stubborn")])
        key = task_key("suspect", "stubborn")
        await broker.publish(Outgoing(TASK.name, key, b"a task", "task.v1"))
        await until(has_begun, deadline_s=60)
        child = int(pid.read_text())
        os.kill(child, 0)
    assert not _lives(child)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
