"""New weights for a model while rollouts run, for trainers.

    await update_policy("policy", 7, "/weights/7", mode="wait")

`TrainerClient.update_policy(7, "/weights/7")` does the same for the run's own model.
"""

from broker.shared.base import PauseMode, PolicyUpdateFailed
from producers import policy
from warren.connections import connect
from warren.settings import load


async def update_policy(
    model: str,
    version: int,
    path: str,
    *,
    mode: PauseMode = "keep",
    broker: str | None = None,
    redis: str | None = None,
) -> None:
    """Return once every endpoint of `model` samples with the weights in `path`.

    Args:
        model: as its gateways know it.
        version: what rows will say sampled them; it never falls.
        path: a directory that the model's servers can read.
        mode: running requests go on under the new weights (`keep`), are finished first (`wait`),
            or are aborted and made again (`abort`).
        broker: AMQP URL; None: WARREN_BROKER or warren.toml. `redis` likewise.

    Raises: UsageError, Unreachable, PolicyUpdateFailed.
    """
    given = {"broker": broker, "redis": redis}
    settings = load({k: v for k, v in given.items() if v is not None}).settings
    async with connect(settings) as at:
        await policy.update_policy(at.broker, at.shared, model, version, path, mode=mode)


__all__ = ["PauseMode", "PolicyUpdateFailed", "update_policy"]
