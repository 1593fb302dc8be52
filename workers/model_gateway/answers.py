"""A provider's answer, made fit for a row: ids where there are none, each tool call's id its own.

Ids are repaired deterministically, from the call's place in its rollout, so that a try that is
made again after a crash yields the same answer for the same words.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Final

from workers.model_gateway.backend import BackendRequest
from workers.model_gateway.remarks import call_ids
from workers.spec import Item

_PREFIX: Final = {"message": "msg_", "function_call": "fc_", "reasoning": "rs_"}


def completed(items: Sequence[Item], request: BackendRequest) -> list[Item]:
    """The answer's items with `id` and `status`, and with call ids unique in the conversation."""
    used: set[str] | None = None
    done = []
    for n, item in enumerate(items):
        kind = str(item.get("type"))
        if "id" in item:
            whole = dict(item)
        else:
            whole = {"id": _PREFIX.get(kind, "item_") + _name(request, n, 24), **item}
        if kind != "reasoning":
            whole.setdefault("status", "completed")
        if kind == "function_call":
            if used is None:
                used = call_ids(request.remarks)
            whole["call_id"] = _own_id(str(item.get("call_id") or ""), used, request, n)
            used.add(whole["call_id"])
        done.append(whole)
    return done


def _own_id(given: str, used: Iterable[str], request: BackendRequest, n: int) -> str:
    while not given or given in used:
        given = _name(request, n, 9)
        n += 1000
    return given


def _name(request: BackendRequest, n: int, length: int) -> str:
    """Letters and digits only, since Mistral's templates take exactly nine of them."""
    seed = f"{request.request_id}:{len(request.remarks)}:{n}".encode()
    return hashlib.blake2b(seed, digest_size=16).hexdigest()[:length]
