"""The processes that run suspects: an agent worker that ends takes them along."""

import os
from pathlib import Path

from broker.base import Outgoing
from broker.memory import MemoryBroker
from broker.topology import TASK, task_key, task_queue
from tests.support.hand import until
from warren.settings import Settings
from warren.suspects import watched

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
