"""Names on the wire: one escaping rule, one place for ids.

Queue names and routing keys are dot-separated, so a name that may hold anything (a model's:
`Qwen/Qwen2.5-7B`) is escaped; run and environment names are restricted where the user types them.
"""

import functools
import hashlib
import os
import random
import re
from typing import Final

#: Run and environment names: they stand in queue names, routing keys, paths and metrics unescaped.
NAME_PATTERN: Final = re.compile(r"[a-z0-9_-]{1,64}")

_PLAIN: Final = re.compile(r"[A-Za-z0-9_-]")
#: Ours alone, so that no `random.seed` of an environment's author makes ids come again.
_IDS: Final = random.Random()
os.register_at_fork(after_in_child=_IDS.seed)


def is_name(text: str) -> bool:
    """Whether `text` may name a run or an environment."""
    return NAME_PATTERN.fullmatch(text) is not None


@functools.lru_cache(maxsize=1024)  # every call's routing key asks for its model's again
def escape(text: str) -> str:
    """Make any text fit one dot-free word of a routing key, reversibly: `/` becomes `:2f`."""
    return "".join(
        c if _PLAIN.fullmatch(c) else "".join(f":{b:02x}" for b in c.encode()) for c in text
    )


def unescape(word: str) -> str:
    """Undo `escape`."""
    parts = re.split(r"((?::[0-9a-f]{2})+)", word)
    return "".join(bytes.fromhex(p.replace(":", "")).decode() if p[:1] == ":" else p for p in parts)


def rollout_id(run: str, task_index: int, repeat: int) -> str:
    """A task instance: run / input line / repeat, the same in every attempt and delivery."""
    return f"{run}/{task_index}/{repeat}"


def journal_key(run: str, generation: str, task_index: int, repeat: int, attempt: int = 1) -> str:
    """The rollout's name in the journal. The generation makes a deleted output start afresh.

    A failed rollout that is run again (`attempt` of its task above 1) has a record of its own:
    its first one is a tombstone by then.
    """
    again = f"@{attempt}" if attempt > 1 else ""
    return f"{run}.{generation}/{task_index}/{repeat}{again}"


def new_id() -> str:
    """32 hex digits, unique: of epochs, carriers, workers. They name things and guard none.

    The kernel is asked for entropy once per process, since each time is a system call.
    """
    return _IDS.getrandbits(128).to_bytes(16, "big").hex()


def new_worker_id(kind: str) -> str:
    """Unique per process start: `agent-<32 hex>`; also the name of its inbox."""
    return f"{kind}-{new_id()}"


def shard_of(rollout_id: str, shards: int) -> int:
    """The shard that a rollout's row belongs to: stable across processes and versions."""
    digest = hashlib.blake2b(rollout_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % shards
