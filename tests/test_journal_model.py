"""The protocol of journal and calls, checked against a model with everything that can go wrong.

`WARREN_EXAMPLES=5000 pytest tests/test_journal_model.py` for thousands of histories.
"""

import asyncio
import os
import sqlite3
import tempfile
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from broker.journal.base import Committed
from broker.journal.memory import MemoryJournal, MemoryTable
from broker.journal.sqlite import SqliteJournal
from tests.support.rollout_model import CALLS, KEY, Executing, Owner, World

Action = Callable[[], None]


class MemoryStore:
    """The journal in memory, whose table can be put back."""

    def __init__(self) -> None:
        self.journal = MemoryJournal(lease_s=3600.0)

    def snapshot(self) -> object:
        return self.journal.table.copy()

    def restore(self, snapshot: object) -> None:
        assert snapshot is None or isinstance(snapshot, MemoryTable)
        self.journal.table.restore(snapshot or MemoryTable())


class SqliteStore:
    """The journal in a file, whose tables a second connection puts back."""

    TABLES = ("heads", "states", "calls")

    def __init__(self, runner: asyncio.Runner, folder: Path) -> None:
        path = folder / "journal.sqlite"
        self.journal = runner.run(SqliteJournal.open(path, lease_s=3600.0))
        self._side = sqlite3.connect(path, isolation_level=None)

    def snapshot(self) -> object:
        return {t: self._side.execute(f"SELECT * FROM {t}").fetchall() for t in self.TABLES}

    def restore(self, snapshot: object) -> None:
        assert snapshot is None or isinstance(snapshot, dict)
        for table in self.TABLES:
            self._side.execute(f"DELETE FROM {table}")
            for row in (snapshot or {}).get(table, ()):
                marks = ", ".join("?" * len(row))
                self._side.execute(f"INSERT INTO {table} VALUES ({marks})", row)

    def close(self) -> None:
        self._side.close()


def at_once(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run what never waits, without a loop."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("the memory journal waited")


class Rollout(RuleBasedStateMachine):
    """One rollout over the memory journal: each step is one of what can happen now."""

    def __init__(self) -> None:
        super().__init__()
        self.world = self.new_world()

    def new_world(self) -> World:
        return World(MemoryStore(), at_once)

    @rule(data=st.data(), rare=st.integers(0, 4))
    def step(self, data: st.DataObject, rare: int) -> None:
        actions = self.accidents() if rare == 0 else self.regular()
        actions = actions or self.accidents()
        actions[data.draw(st.sampled_from(sorted(actions)))]()

    def regular(self) -> dict[str, Action]:
        """What moves the rollout on."""
        actions: dict[str, Action] = {"save": self.world.remember}
        for who, owner in self.world.owners.items():
            actions |= self._owner(who, owner)
        for who, executing in self.world.executors.items():
            actions |= self._executor(who, executing)
        if self.world.ended:
            actions["row is committed"] = self.world.commit
        if self.world.ladder:
            actions["a call's wait is over"] = self.world.wait_is_over
        if self.world.dead:
            actions["a dead executor's lease ends"] = self.world.dead_lease_ends
        return actions

    def _owner(self, who: str, owner: Owner | None) -> dict[str, Action]:
        world = self.world
        if owner is None:
            return {f"{who} takes": partial(world.take, who)} if world.tasks else {}
        actions: dict[str, Action] = {f"{who} sweeps": partial(world.sweep, who)}
        if owner.lost:
            actions[f"{who} uploads"] = partial(world.upload, who)
        if owner.done:
            return actions | {f"{who} ends": partial(world.end, who)}
        if owner.message is None:
            actions[f"{who} publishes"] = partial(world.publish, who)
        elif not world.calls:
            actions[f"{who} publishes again"] = partial(world.publish_again, who)
        return actions

    def _executor(self, who: str, executing: Executing | None) -> dict[str, Action]:
        world = self.world
        if executing is None:
            return {f"{who} begins {n}": partial(world.begin, who, n) for n in world.each_call()}
        if executing.result is None:
            return {
                f"{who} works": partial(world.work, who),
                f"{who} puts it off": partial(world.put_off, who),
            }
        if executing.finished:
            return {f"{who} acks": partial(world.ack, who)}
        return {
            f"{who} finishes": partial(world.finish, who),
            f"{who} finishes, reply lost": partial(world.finish, who, reply_lost=True),
        }

    def accidents(self) -> dict[str, Action]:
        """What should not happen and does."""
        world = self.world
        actions: dict[str, Action] = {
            "flush": world.flush,
            "broker restarts": world.broker_restarts,
        }
        if world.snapshot:
            actions["roll back"] = world.roll_back
        for who, owner in world.owners.items():
            if owner is not None:
                actions |= self._owner_accidents(who, owner)
        for who, executing in world.executors.items():
            if executing is not None:
                actions[f"{who} crashes"] = partial(world.crash_executor, who)
        for inbox in world.leases:
            actions[f"lease of {inbox} ends"] = partial(world.lease_ends, inbox)
        for n in world.each_call():
            actions[f"call {n} is delivered twice"] = partial(world.deliver_twice, n)
        return actions

    def _owner_accidents(self, who: str, owner: Owner) -> dict[str, Action]:
        world = self.world
        actions: dict[str, Action] = {
            f"{who} crashes": partial(world.stop_owner, who),
            f"{who} restarts": partial(world.restart, who),
        }
        for path in map(str, range(CALLS)):
            replay = partial(world.replay_differently, who, path)
            actions[f"{who} replays {path} differently"] = replay
        if owner.message is not None:
            actions[f"{who} publishes anew"] = partial(world.publish, who)
            actions[f"{who} forces"] = partial(world.publish, who, force=True)
        return actions

    def teardown(self) -> None:
        """Whatever happened, one owner and one executor bring the rollout home."""
        world = self.world
        for who in world.executors:
            if world.executors[who]:
                world.crash_executor(who)
        while world.dead:
            world.dead_lease_ends()
        for who in world.owners:
            world.stop_owner(who)
        world.broker_restarts()
        while world.ladder:
            world.wait_is_over()
        for _ in list(world.calls):
            self._execute()
        for _ in range(40):
            if world.mirror.committed:
                break
            self._go_on()
        assert world.mirror.committed, "the rollout never ended"
        assert world.wait(world.journal.take(KEY, "late")) == Committed()

    def _go_on(self) -> None:
        world = self.world
        for inbox in list(world.leases):
            if not world.owners["A"] or world.owners["A"].inbox != inbox:
                world.lease_ends(inbox)
        owner = world.owners["A"]
        if owner is None:
            world.tasks = max(world.tasks, 0 if world.ended else 1)
            return world.take("A") if world.tasks else world.commit()
        if owner.lost:
            return world.upload("A")
        if owner.done:
            world.end("A")
            return world.commit()
        world.calls.clear()
        world.publish("A")
        self._execute()

    def _execute(self) -> None:
        world = self.world
        world.begin("X", 0)
        if world.executors["X"]:
            world.work("X")
            world.finish("X")
            world.ack("X")


class SqliteRollout(Rollout):
    """The same over a file."""

    def new_world(self) -> World:
        self.runner = asyncio.Runner()
        self.folder = tempfile.TemporaryDirectory()
        self.sqlite = SqliteStore(self.runner, Path(self.folder.name))
        return World(self.sqlite, self.runner.run)

    def teardown(self) -> None:
        try:
            super().teardown()
        finally:
            self.sqlite.close()
            self.runner.run(self.sqlite.journal.close())
            self.runner.close()
            self.folder.cleanup()


def profile(examples: int) -> settings:
    """Seeded by default; as many random histories as WARREN_EXAMPLES says otherwise."""
    wanted = int(os.environ.get("WARREN_EXAMPLES", "0"))
    return settings(
        max_examples=wanted or examples,
        stateful_step_count=60,
        deadline=None,
        derandomize=not wanted,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def test_no_history_breaks_the_memory_journal() -> None:
    run_state_machine_as_test(Rollout, settings=profile(150))


def test_no_history_breaks_the_sqlite_journal() -> None:
    run_state_machine_as_test(SqliteRollout, settings=profile(15))
