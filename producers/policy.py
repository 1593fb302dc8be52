"""Asks the gateways of a model for new weights, and waits until every endpoint has them."""

import asyncio
import time
import uuid
from typing import Final

from broker.base import Broker, Outgoing
from broker.errors import UsageError
from broker.shared.base import PauseMode, PolicyState, PolicyUpdate, PolicyUpdateFailed, Shared
from broker.topology import CONTROL, control_queue

#: A gateway takes an update within two seconds; without one for this long there is none.
TAKEN_WITHIN_S: Final = 30.0
_LOOK_EVERY_S: Final = 0.2


async def update_policy(
    broker: Broker,
    shared: Shared,
    model: str,
    version: int,
    path: str,
    *,
    mode: PauseMode = "keep",
    taken_within_s: float = TAKEN_WITHIN_S,
) -> None:
    """Return once every endpoint of `model` samples with the weights in `path`.

    `path` is a directory that the model's servers can read. `version` names them in every row; it
    must not fall. Asking again for a version that is loaded loads it again.

    Raises UsageError (a lower version, another update under way), PolicyUpdateFailed (an endpoint
    refused, or no gateway serves the model), JournalUnavailable.
    """
    known = await shared.policy(model)
    if known is not None and known.version is not None and version < known.version:
        raise UsageError(f"model {model!r} is at version {known.version} already")
    update = PolicyUpdate(
        id=uuid.uuid4().hex, version=version, path=path, mode=mode, before=_loaded_path(known)
    )
    hints = control_queue(f"asker-{update.id[:12]}")  # so that the exchange exists
    await broker.declare([hints])
    try:
        state = await _followed(broker, shared, model, update, taken_within_s)
    finally:
        await broker.delete(hints.name)
    if state.update.id != update.id:
        raise PolicyUpdateFailed(f"version {state.update.version} came after version {version}")
    if state.phase == "failed":
        raise PolicyUpdateFailed(f"version {version} of model {model!r}: {state.error}")


def _loaded_path(known: PolicyState | None) -> str:
    if known is None:
        return ""
    return known.update.path if known.phase == "done" else known.update.before


async def _followed(
    broker: Broker, shared: Shared, model: str, update: PolicyUpdate, taken_within_s: float
) -> PolicyState:
    """The update's end."""
    state = await _asked(broker, shared, model, update)
    patient_until = time.monotonic() + taken_within_s
    while state.open and state.update.id == update.id:
        late = state.phase == "asked" and time.monotonic() > patient_until
        if late and await shared.withdraw(model, update.id):
            raise PolicyUpdateFailed(f"no gateway that serves {model!r} took the update")
        await asyncio.sleep(_LOOK_EVERY_S)
        state = await shared.policy(model) or await _asked(broker, shared, model, update)
    return state


async def _asked(broker: Broker, shared: Shared, model: str, update: PolicyUpdate) -> PolicyState:
    state = await shared.ask(model, update)
    if state.update.id != update.id:
        raise UsageError(f"version {state.update.version} of model {model!r} is being loaded")
    broker.publish_hint(Outgoing(CONTROL.name, "", b"", persistent=False))
    return state
