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

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from broker.journal.base import Committed
from broker.journal.memory import MemoryJournal, MemoryTable
from broker.journal.sqlite import SqliteJournal
from tests.support.rollout_executors import Executing, Executors
from tests.support.rollout_model import CALLS, KEY, History, Store, Wait
from tests.support.rollout_owners import Owner, Owners

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
        self.history = History(*self.new_store())
        self.owners = Owners(self.history)
        self.executors = Executors(self.history, self.owners)

    def new_store(self) -> tuple[Store, Wait]:
        return MemoryStore(), at_once

    @rule(data=st.data(), rare=st.integers(0, 4))
    def step(self, data: st.DataObject, rare: int) -> None:
        actions = self.accidents() if rare == 0 else self.regular()
        actions = actions or self.accidents()
        actions[data.draw(st.sampled_from(sorted(actions)))]()

    def regular(self) -> dict[str, Action]:
        """What moves the rollout on."""
        actions: dict[str, Action] = {"save": self.history.remember}
        for who, owner in self.owners.at.items():
            actions |= self._owner(who, owner)
        for who, executing in self.executors.at.items():
            actions |= self._executor(who, executing)
        if self.history.ended:
            actions["row is committed"] = self.history.commit
        return actions

    def _owner(self, who: str, owner: Owner | None) -> dict[str, Action]:
        owners = self.owners
        if owner is None:
            return {f"{who} takes": partial(owners.take, who)} if self.history.tasks else {}
        actions: dict[str, Action] = {f"{who} sweeps": partial(owners.sweep, who)}
        if owner.lost:
            actions[f"{who} uploads"] = partial(owners.upload, who)
        if owner.done:
            return actions | {f"{who} ends": partial(owners.end, who)}
        if owner.message is None:
            actions[f"{who} publishes"] = partial(owners.publish, who)
        elif not self.history.calls:
            actions[f"{who} publishes again"] = partial(owners.publish_again, who)
        return actions

    def _executor(self, who: str, executing: Executing | None) -> dict[str, Action]:
        executors = self.executors
        if executing is None:
            calls = self.history.each_call()
            return {f"{who} begins {n}": partial(executors.begin, who, n) for n in calls}
        if executing.result is None:
            return {
                f"{who} works": partial(executors.work, who),
                f"{who} puts it off": partial(executors.put_off, who),
            }
        if executing.finished:
            return {f"{who} acks": partial(executors.ack, who)}
        return {
            f"{who} finishes": partial(executors.finish, who),
            f"{who} finishes, reply lost": partial(executors.finish, who, reply_lost=True),
        }

    def accidents(self) -> dict[str, Action]:
        """What should not happen and does."""
        history = self.history
        actions: dict[str, Action] = {
            "flush": history.flush,
            "broker restarts": self.executors.restart_broker,
        }
        if history.snapshot:
            actions["roll back"] = history.roll_back
        for who, owner in self.owners.at.items():
            if owner is not None:
                actions |= self._owner_accidents(who, owner)
        for who, executing in self.executors.at.items():
            if executing is not None:
                actions[f"{who} crashes"] = partial(self.executors.crash, who)
        for lease in history.leases:
            actions[f"lease of {lease} ends"] = partial(history.lease_ends, lease)
        for n in history.each_call():
            actions[f"call {n} is delivered twice"] = partial(history.deliver_twice, n)
        return actions

    def _owner_accidents(self, who: str, owner: Owner) -> dict[str, Action]:
        owners = self.owners
        actions: dict[str, Action] = {
            f"{who} crashes": partial(owners.stop, who),
            f"{who} restarts": partial(owners.restart, who),
        }
        for path in map(str, range(CALLS)):
            replay = partial(owners.replay_differently, who, path)
            actions[f"{who} replays {path} differently"] = replay
        if owner.message is not None:
            actions[f"{who} publishes anew"] = partial(owners.publish, who)
            actions[f"{who} forces"] = partial(owners.publish, who, force=True)
        return actions

    def teardown(self) -> None:
        """Whatever happened: all processes and the broker die, their leases end, and one owner
        and one executor bring the rollout home. Forced, as after a call's deadline, is only what a
        journal that was rolled back says to wait on a ladder: it may have left that since."""
        self.executors.restart_broker()
        for who, executing in self.executors.at.items():
            if executing is not None:
                self.executors.crash(who)
        for who in self.owners.at:
            self.owners.stop(who)
        for _ in range(60):
            if self.history.mirror.committed:
                break
            self._go_on()
        history = self.history
        assert history.mirror.committed, "the rollout never ended"
        assert history.wait(history.journal.take(KEY, "late")) == Committed()

    def _go_on(self) -> None:
        history, owner = self.history, self.owners.at["A"]
        needed = {owner.inbox if owner else "", self.executors.lease("X")}
        for lease in history.leases - needed:
            history.lease_ends(lease)
        if owner is None:
            history.tasks = max(history.tasks, 0 if history.ended else 1)
            return self.owners.take("A") if history.tasks else history.commit()
        if owner.lost:
            return self.owners.upload("A")
        if owner.done:
            self.owners.end("A")
            return history.commit()
        self.owners.publish("A", force=not history.intact(owner.epoch))
        for _ in history.each_call():
            if self.executors.at["X"] is None:
                self.executors.begin("X", 0)
        if self.executors.at["X"] is not None:
            self.executors.work("X")
            self.executors.finish("X")
            self.executors.ack("X")


class SqliteRollout(Rollout):
    """The same over a file."""

    def new_store(self) -> tuple[Store, Wait]:
        self.runner = asyncio.Runner()
        self.folder = tempfile.TemporaryDirectory()
        self.sqlite = SqliteStore(self.runner, Path(self.folder.name))
        return self.sqlite, self.runner.run

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
        phases=list(Phase) if wanted else [Phase.generate],  # shrinking takes minutes
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def test_no_history_breaks_the_memory_journal() -> None:
    run_state_machine_as_test(Rollout, settings=profile(150))


def test_no_history_breaks_the_sqlite_journal() -> None:
    run_state_machine_as_test(SqliteRollout, settings=profile(15))
