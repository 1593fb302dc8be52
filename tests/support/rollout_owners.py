"""Two agent workers of the model (rollout_model.py): every arrow of an owner as a method that
takes it and checks what must hold."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass

from broker.journal.base import (
    CallRef,
    Committed,
    Gone,
    Lost,
    Mismatch,
    Run,
    Stored,
    Upload,
)
from tests.support.rollout_model import CALLS, KEY, History, Message, Mirror, request


@dataclass
class Owner:
    """An agent worker that runs the rollout and holds a task's delivery."""

    inbox: str
    epoch: str
    attempt: int
    results: dict[str, Stored]
    message: Message | None = None
    lost: bool = False

    @property
    def path(self) -> str:
        return str(len(self.results))

    @property
    def done(self) -> bool:
        return len(self.results) == CALLS


class Owners:
    """Agent workers A and B."""

    def __init__(self, history: History) -> None:
        self.at: dict[str, Owner | None] = {"A": None, "B": None}
        self._history = history

    def take(self, who: str) -> None:
        history = self._history
        inbox = history.new_lease("inbox")
        taken = history.wait(history.journal.take(KEY, inbox))
        if history.mirror.committed:
            assert taken == Committed(), "a committed rollout ran again"
        if isinstance(taken, Committed):
            assert history.mirror.committed
            history.tasks -= 1
        if not isinstance(taken, Run):
            return
        assert taken.epoch == history.mirror.epoch or taken.epoch not in history.epochs
        if taken.epoch != history.mirror.epoch:
            assert not history.mirror.epoch, "a take keeps the epoch"
            history.mirror = Mirror(taken.epoch)
        assert taken.results == history.mirror.results
        history.epochs.add(taken.epoch)
        history.tasks -= 1
        for path, stored in taken.results.items():
            history.hear(taken.epoch, path, stored.result)
        self.at[who] = Owner(inbox, taken.epoch, taken.attempt, _played(taken.results))

    def publish(self, who: str, *, force: bool = False) -> None:
        owner = self._owner(who)
        ref = CallRef(
            rollout=KEY,
            epoch=owner.epoch,
            path=owner.path,
            carrier=uuid.uuid4().hex,
            request_hash=request(owner.results, owner.path),
            held=len(owner.results),
            lasting=len(owner.results) % 2 == 0,
        )
        owner.message = Message(ref, owner.inbox, force)
        self._history.calls.append(owner.message)

    def publish_again(self, who: str) -> None:
        message = self._owner(who).message
        assert message is not None
        self._history.calls.append(message)

    def replay_differently(self, who: str, path: str) -> None:
        owner, mirror = self._owner(who), self._history.mirror
        ref = CallRef(
            rollout=KEY,
            epoch=owner.epoch,
            path=path,
            carrier=uuid.uuid4().hex,
            request_hash=b"other",
            held=0,
        )
        known = path in mirror.results or path in mirror.claims
        if known and owner.epoch == mirror.epoch:
            begun = self._history.wait(self._history.journal.begin(ref))
            assert isinstance(begun, Mismatch)

    def sweep(self, who: str) -> None:
        owner, history = self._owner(who), self._history
        seen = history.wait(history.journal.look(KEY, owner.epoch, [owner.path]))
        if isinstance(seen, Lost):
            owner.lost = True
        elif isinstance(seen, Gone) or seen.inbox != owner.inbox:
            self.stop(who)
        elif owner.path in seen.results:
            stored = history.wait(history.journal.result(KEY, owner.epoch, owner.path))
            assert stored == seen.results[owner.path].result
            self._answer(owner, owner.path, seen.results[owner.path])
        else:
            assert (owner.path in seen.claimed) == history.is_claimed(owner.path)
            if owner.message and not seen.claimed:
                self.publish(who)

    def upload(self, who: str) -> None:
        owner, history = self._owner(who), self._history
        upload = Upload(
            rollout=KEY,
            epoch=owner.epoch,
            attempt=owner.attempt,
            inbox=owner.inbox,
            results=dict(owner.results),
        )
        owner.lost = False
        mirror = history.mirror
        if not history.wait(history.journal.upload(upload)):
            assert (
                not history.intact(owner.epoch)
                or mirror.epoch != owner.epoch
                or (mirror.committed or len(history.leases) > 1)
            )
            return self.stop(who)
        assert not mirror.committed
        assert mirror.epoch in {"", owner.epoch}
        mirror.epoch = owner.epoch
        for path, stored in owner.results.items():
            assert mirror.results.setdefault(path, stored) == stored
            mirror.claims.pop(path, None)

    def end(self, who: str) -> None:
        history = self._history
        history.ended = True
        history.wait(history.journal.ended(KEY, self._owner(who).epoch))
        self.at[who] = None

    def restart(self, who: str) -> None:
        owner, history = self._owner(who), self._history
        attempt = history.wait(history.journal.restart(KEY, owner.epoch))
        if attempt is None:
            return self.stop(who)
        taken = history.wait(history.journal.take(KEY, owner.inbox))
        assert isinstance(taken, Run)
        assert taken.attempt == attempt
        assert taken.epoch not in history.epochs
        history.wait(history.journal.release(KEY, taken.epoch, owner.inbox))
        history.mirror = Mirror(taken.epoch)
        history.epochs.add(taken.epoch)
        self.stop(who)

    def stop(self, who: str) -> None:
        """Its task goes back to the queue, whether it crashed or gave it back."""
        if self.at[who] is not None:
            self._history.tasks += 1
        self.at[who] = None

    # what executors say

    def reply(self, inbox: str, ref: CallRef, result: bytes) -> None:
        found = self._find(inbox)
        if found is not None and found[1].epoch == ref.epoch:
            self._answer(found[1], ref.path, Stored(ref.request_hash, result))

    def tell_lost(self, message: Message) -> bool:
        """Whether there was somebody to tell."""
        found = self._find(message.reply_to)
        if found is not None:
            found[1].lost = True
        return found is not None

    def tell_gone(self, message: Message) -> None:
        found = self._find(message.reply_to)
        if found is not None and found[1].epoch == message.ref.epoch:
            self.stop(found[0])

    def blame(self, inbox: str) -> None:
        found = self._find(inbox)
        if found is not None:
            self.restart(found[0])

    def _owner(self, who: str) -> Owner:
        owner = self.at[who]
        assert owner is not None
        return owner

    def _find(self, inbox: str) -> tuple[str, Owner] | None:
        return next(((w, o) for w, o in self.at.items() if o and o.inbox == inbox), None)

    def _answer(self, owner: Owner, path: str, stored: Stored) -> None:
        if path != owner.path or stored.request_hash != request(owner.results, path):
            return
        self._history.hear(owner.epoch, path, stored.result)
        owner.results[path] = stored
        owner.message = None


def _played(results: Mapping[str, Stored]) -> dict[str, Stored]:
    """What a replay gets through: results without a gap, whose requests are the same."""
    played: dict[str, Stored] = {}
    while (path := str(len(played))) in results:
        if results[path].request_hash != request(played, path):
            break
        played[path] = results[path]
    return played
