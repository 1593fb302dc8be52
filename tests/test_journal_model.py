"""The protocol of journal and calls, checked against a model with everything that can go wrong.

`WARREN_EXAMPLES=5000 pytest tests/test_journal_model.py` for thousands of histories.
"""

import asyncio
import os
import sqlite3
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    precondition,
    rule,
    run_state_machine_as_test,
)

from broker.journal.base import Committed
from broker.journal.memory import MemoryJournal, MemoryTable
from broker.journal.sqlite import SqliteJournal
from tests.support.rollout_model import KEY, World

OWNERS = st.sampled_from(["A", "B"])
EXECUTORS = st.sampled_from(["X", "Y"])
INDEX = st.integers(0, 7)


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
    """One rollout over the memory journal."""

    def __init__(self) -> None:
        super().__init__()
        self.world = self.new_world()

    def new_world(self) -> World:
        return World(MemoryStore(), at_once)

    def _has(self, who: str) -> bool:
        return self.world.owners[who] is not None

    @precondition(lambda self: self.world.tasks > 0)
    @rule(who=OWNERS)
    def owner_takes(self, who: str) -> None:
        if not self._has(who):
            self.world.take(who)

    @rule(who=OWNERS, force=st.booleans())
    def owner_publishes(self, who: str, force: bool) -> None:
        owner = self.world.owners[who]
        if owner and not owner.done and (force or owner.message is None):
            self.world.publish(who, force=force and owner.message is not None)

    @rule(who=OWNERS)
    def owner_publishes_again(self, who: str) -> None:
        owner = self.world.owners[who]
        if owner and owner.message and len(self.world.calls) < 8:
            self.world.publish_again(who)

    @rule(who=OWNERS, path=st.integers(0, 3))
    def agent_replays_differently(self, who: str, path: int) -> None:
        if self._has(who):
            self.world.replay_differently(who, str(path))

    @rule(who=OWNERS)
    def owner_sweeps(self, who: str) -> None:
        if self._has(who):
            self.world.sweep(who)

    @rule(who=OWNERS)
    def owner_uploads(self, who: str) -> None:
        owner = self.world.owners[who]
        if owner and owner.lost:
            self.world.upload(who)

    @rule(who=OWNERS)
    def owner_ends(self, who: str) -> None:
        owner = self.world.owners[who]
        if owner and owner.done:
            self.world.end(who)

    @rule(who=OWNERS)
    def owner_restarts(self, who: str) -> None:
        owner = self.world.owners[who]
        if owner and len(owner.results) > 1:
            self.world.restart(who)

    @rule(who=OWNERS)
    def owner_crashes(self, who: str) -> None:
        self.world.stop_owner(who)

    @precondition(lambda self: self.world.leases)
    @rule(index=INDEX)
    def lease_runs_out(self, index: int) -> None:
        leases = sorted(self.world.leases)
        self.world.lease_ends(leases[index % len(leases)])

    @precondition(lambda self: self.world.ended)
    @rule()
    def row_is_committed(self) -> None:
        self.world.commit()

    @precondition(lambda self: self.world.calls)
    @rule(who=EXECUTORS, index=INDEX)
    def executor_begins(self, who: str, index: int) -> None:
        if self.world.executors[who] is None:
            self.world.begin(who, index)

    @rule(who=EXECUTORS)
    def executor_works(self, who: str) -> None:
        executing = self.world.executors[who]
        if executing and executing.result is None:
            self.world.work(who)

    @rule(who=EXECUTORS, reply_lost=st.booleans())
    def executor_finishes(self, who: str, reply_lost: bool) -> None:
        executing = self.world.executors[who]
        if executing and executing.result is not None and not executing.finished:
            self.world.finish(who, reply_lost=reply_lost)

    @rule(who=EXECUTORS)
    def executor_acks(self, who: str) -> None:
        executing = self.world.executors[who]
        if executing and executing.finished:
            self.world.ack(who)

    @rule(who=EXECUTORS)
    def executor_crashes(self, who: str) -> None:
        if self.world.executors[who]:
            self.world.crash_executor(who)

    @precondition(lambda self: self.world.calls)
    @rule(index=INDEX)
    def call_is_delivered_twice(self, index: int) -> None:
        if len(self.world.calls) < 8:
            self.world.calls.append(self.world.calls[index % len(self.world.calls)])

    @rule(who=OWNERS, executor=EXECUTORS)
    def call_goes_through(self, who: str, executor: str) -> None:
        """Without this, few histories would come far."""
        owner, world = self.world.owners[who], self.world
        if owner is None or owner.done or owner.message or world.executors[executor]:
            return
        world.publish(who)
        world.begin(executor, len(world.calls) - 1)
        if world.executors[executor]:
            world.work(executor)
            world.finish(executor)
        executing = world.executors[executor]
        if executing and executing.finished:
            world.ack(executor)

    @rule()
    def journal_is_saved(self) -> None:
        self.world.remember()

    @precondition(lambda self: self.world.snapshot)
    @rule()
    def journal_is_rolled_back(self) -> None:
        self.world.roll_back()

    @rule(really=st.integers(0, 3))
    def journal_is_flushed(self, really: int) -> None:
        if not really:
            self.world.flush()

    def teardown(self) -> None:
        """Whatever happened, one owner and one executor bring the rollout home."""
        world = self.world
        for who in world.executors:
            if world.executors[who]:
                world.crash_executor(who)
        for who in world.owners:
            world.stop_owner(who)
        world.calls.clear()
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
        world.publish("A", force=True)  # past every older claim's deadline
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
    run_state_machine_as_test(Rollout, settings=profile(250))


def test_no_history_breaks_the_sqlite_journal() -> None:
    run_state_machine_as_test(SqliteRollout, settings=profile(15))
