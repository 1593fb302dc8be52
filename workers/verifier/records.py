"""How verdicts lie in the journal: first-wins, each with the digest of the trajectory it judges.

Two trajectories of one rollout may differ (an attempt that began anew): then each keeps its own
verdict, and the first row that is committed wins.
"""

from typing import Final

import msgspec

from broker import codec
from broker.crashpoints import crash_at
from broker.journal.base import CallRef, Committed, Finished, Journal, Run
from broker.journal.patience import patiently
from broker.messages import Verdict
from broker.names import new_id
from workers.owner import Owner, Replaced

#: Where it stands among the calls of the verification.
VERDICT_PATH: Final = "verdict"


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """A verdict with the digest of the trajectory that it is about."""

    digest: bytes
    verdict: Verdict


def known_verdict(run: Run, digest: bytes) -> Verdict | None:
    """What was said of this trajectory before."""
    known = run.results.get(VERDICT_PATH)
    if known is None or known.request_hash != digest:
        return None
    return codec.read(Judged, known.result).verdict


async def finish_verdict(
    journal: Journal, owner: Owner, digest: bytes, verdict: Verdict
) -> Verdict:
    """Store it as its owner; the one that counts for this trajectory. Raises Replaced."""
    ref = CallRef(
        rollout=owner.key,
        epoch=owner.run.epoch,
        path=VERDICT_PATH,
        carrier=new_id(),
        request_hash=digest,
        held=0,
    )
    ours = codec.pack(Judged(digest=digest, verdict=verdict))
    finished = await patiently(lambda: journal.finish(ref, ours))
    crash_at("verifier.after_verdict")
    if not isinstance(finished, Finished):
        raise Replaced(owner.key)
    return verdict if finished.won else _counting(finished.result, digest, verdict)


async def keep_verdict(
    journal: Journal, key: str, digest: bytes, verdict: Verdict
) -> Verdict | None:
    """Store it as nobody in particular; the one that counts, or None where the row is committed."""
    ours = codec.pack(Judged(digest=digest, verdict=verdict))
    kept = await patiently(lambda: journal.keep_first(key, VERDICT_PATH, digest, ours))
    crash_at("verifier.after_verdict")
    if isinstance(kept, Committed):
        return None
    return verdict if kept.result is ours else _counting(kept.result, digest, verdict)


def _counting(first: bytes, digest: bytes, ours: Verdict) -> Verdict:
    judged = codec.read(Judged, first)
    return judged.verdict if judged.digest == digest else ours
