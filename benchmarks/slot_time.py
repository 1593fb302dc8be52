"""Where the time of an agent's slots went, from what the rows say: what keeps efficiency below 1.

provider   a model call of the rollout was at its provider
added      a model call was out, but not at its provider
tools      a tool call was out
between    the rollout ran, but waited for no call
idle       there was no rollout in the slot: from one's end to the next one's begin
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Life(NamedTuple):
    """A rollout's course, in Unix seconds, and the seconds that its calls took."""

    began: float
    ended: float
    models_s: float
    provider_s: float
    tools_s: float


def life_of(row: Mapping[str, Any]) -> Life:
    """From the `warren` part of a row."""
    models = [call for call in row["calls"] if call["kind"] == "model"]
    tools = [call for call in row["calls"] if call["kind"] != "model"]
    return Life(
        began=row["timing"]["started_at"],
        ended=row["timing"]["finished_at"],
        models_s=sum(map(_lasted_s, models)),
        provider_s=sum(call["seconds"] for call in models),
        tools_s=sum(map(_lasted_s, tools)),
    )


def slot_time(lives: Sequence[Life], slots: int) -> dict[str, float]:
    """Shares of the slots' time, from when half of the first ones had ended to the last begin.

    A rollout that was cut by that window counts with the same shares for the part inside.
    """
    since = sorted(life.ended for life in lives)[slots // 2]
    until = max(life.began for life in lives)
    whole = slots * (until - since)
    spent = dict.fromkeys(("provider", "added", "tools", "between"), 0.0)
    for life in lives:
        inside_s = max(min(life.ended, until) - max(life.began, since), 0.0)
        share = inside_s / max(life.ended - life.began, 1e-9) / whole
        spent["provider"] += share * life.provider_s
        spent["added"] += share * (life.models_s - life.provider_s)
        spent["tools"] += share * life.tools_s
        spent["between"] += share * (life.ended - life.began - life.models_s - life.tools_s)
    return {**spent, "idle": 1 - sum(spent.values())}


def _lasted_s(call: Mapping[str, Any]) -> float:
    lasted: float = call["finished_at"] - call["started_at"]
    return lasted
