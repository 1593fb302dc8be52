"""What a trainer has received and not acked: bookkeeping without any waiting.

A rollout is in hand from its first copy until `let_go`; a further copy replaces the delivery that
is held, so exactly one is, and after `let_go` every copy is dropped at sight.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from broker.base import Delivery
from producers import bitmap
from producers.rollouts import FinishedRollout, RolloutGroup

Key = tuple[str, int, int]
"""Generation, task index, repeat."""
GroupKey = tuple[str, int]


def key_of(rollout: FinishedRollout) -> Key:
    """What tells a rollout from all others of its run."""
    return rollout.generation, rollout.task_index, rollout.repeat


@dataclass(slots=True)
class _Held:
    rollout: FinishedRollout
    delivery: Delivery
    since: float
    """Monotonic seconds at which this delivery came."""


@dataclass(slots=True)
class _Group:
    here: dict[int, FinishedRollout] = field(default_factory=dict)
    """By repeat."""
    acked: int = 0


class InHand:
    """The rollouts of one run that are here, alone and as groups."""

    def __init__(self, repeats: int, acked: Mapping[tuple[str, int], bytes]) -> None:
        """`acked` says by generation and repeat which tasks' rollouts were acked before."""
        self._repeats = repeats
        self._acked = {key: bytearray(bits) for key, bits in acked.items()}
        self._held: dict[Key, _Held] = {}
        self._groups: dict[GroupKey, _Group] = {}
        self._ready: dict[Key, None] = {}
        self._ready_groups: dict[GroupKey, None] = {}

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, key: Key) -> bool:
        return key in self._held

    @property
    def has_rollout(self) -> bool:
        """Whether a rollout waits to be handed over."""
        return bool(self._ready)

    @property
    def has_group(self) -> bool:
        """Whether a complete group waits to be handed over."""
        return bool(self._ready_groups)

    def take(self, rollout: FinishedRollout, delivery: Delivery) -> bool:
        """Keep what was delivered, or ack it where it is acked already. Whether it is new."""
        key = key_of(rollout)
        if self._is_acked(key):
            delivery.ack()
            return False
        if (held := self._held.get(key)) is not None:
            # Of two copies the newer stays in hand: the older may be due for renewal, or lost.
            held.delivery.ack()
            held.delivery, held.since = delivery, time.monotonic()
            return False
        self._held[key] = _Held(rollout, delivery, time.monotonic())
        self._ready[key] = None
        self._join(key, rollout)
        return True

    def begins_group(self, rollout: FinishedRollout) -> bool:
        """Whether it is the only one of its group that is here."""
        return len(self._groups[key_of(rollout)[:2]].here) == 1

    def missing(self, rollout: FinishedRollout) -> list[int]:
        """Repeats of its task that are neither here nor acked."""
        generation, index, _ = key_of(rollout)
        keys = [(generation, index, repeat) for repeat in range(self._repeats)]
        return [key[2] for key in keys if key not in self._held and not self._is_acked(key)]

    def next_rollout(self) -> FinishedRollout:
        """Hand over the rollout that came first."""
        key = next(iter(self._ready))
        del self._ready[key]
        return self._held[key].rollout

    def next_group(self) -> RolloutGroup:
        """Hand over the group that was complete first, without members acked one by one."""
        key = next(iter(self._ready_groups))
        del self._ready_groups[key]
        here = self._groups[key].here
        members = tuple(here[repeat] for repeat in sorted(here))
        return RolloutGroup(members[0].group_id, members[0].task_index, members)

    def let_go(self, key: Key) -> None:
        """It was used, and that is durable: ack its delivery, and never take it again."""
        generation, index, repeat = key
        bitmap.add(self._acked.setdefault((generation, repeat), bytearray()), index)
        self._held.pop(key).delivery.ack()
        self._ready.pop(key, None)
        group = self._groups[generation, index]
        del group.here[repeat]
        group.acked += 1
        if not group.here:
            self._ready_groups.pop((generation, index), None)
            del self._groups[generation, index]

    def held_since(self, before: float) -> Sequence[Delivery]:
        """Deliveries still ours that came before this monotonic time."""
        held = self._held.values()
        return [h.delivery for h in held if h.since < before and h.delivery.live]

    def give_back(self) -> None:
        """All of it is for the next process."""
        for held in self._held.values():
            held.delivery.give_back()

    def _join(self, key: Key, rollout: FinishedRollout) -> None:
        generation, index, repeat = key
        group = self._groups.get((generation, index))
        if group is None:
            siblings = [(generation, index, r) for r in range(self._repeats)]
            group = _Group(acked=sum(map(self._is_acked, siblings)))
            self._groups[generation, index] = group
        group.here[repeat] = rollout
        if len(group.here) + group.acked >= self._repeats:
            self._ready_groups[generation, index] = None

    def _is_acked(self, key: Key) -> bool:
        generation, index, repeat = key
        return bitmap.has(self._acked.get((generation, repeat), b""), index)


__all__ = ["InHand", "Key", "key_of"]
