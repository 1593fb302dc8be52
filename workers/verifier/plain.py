"""Verifications that can make no calls: scored first, then stored by one journal operation.

Nothing of such a verification is worth keeping but its verdict, so nobody owns it while it runs:
no `take` before it. `keep_first` stores the verdict unless there is one, or says that the row is
committed. Only a trajectory that comes for the first time goes this way; whatever may have been in
somebody's hands before is taken, looked up and counted like every other verification. What holds:

* A verifier that dies after the verdict was stored: the redelivery finds it and scores nothing.
* One that dies while it scores left no record, so no take was counted. A redelivery that finds no
  record therefore counts one more: who kills his verifier is isolated, and given up, after as many
  deaths as elsewhere. A polite stop leaves a record with no take, so that it counts as none. What
  the broker takes back before a worker has looked at it looks like a death: it is isolated for
  nothing, which costs time and no reward.
* Copies are told by their header (AGAIN_HEADER) and go the other way. Two that are scored at the
  same time, which an owner would have prevented, cost that work twice and no more: the first
  verdict that is stored is the one that both publish.
* A journal that was emptied is no loss: the record is made with the verdict. One that is away is
  waited for with the verdict in hand.
* A trajectory that had to be begun on by some time (`verify_s`) is taken: the record's first take
  is the proof that it was.
"""

from broker.base import Delivery
from broker.messages import Task
from workers.spec import EnvironmentSpec


def is_plain(spec: EnvironmentSpec) -> bool:
    """Whether its rewards run here, and can make no calls."""
    return not any(r.needs_ctx or r.needs_session or r.isolated for r in spec.rewards)


def may_wait(task: Task) -> bool:
    """Whether its trajectory may lie in the queue for any time."""
    return task.limits.waits.verify_s is None


def is_first(delivery: Delivery) -> bool:
    """Whether nobody can have had this trajectory in hand: it was neither given back nor
    published again, and comes from no ladder."""
    return not delivery.redelivered and not delivery.headers
