"""From what the user calls a model to what tasks name and gateways serve."""

from collections.abc import Iterable, Mapping

from broker.errors import UsageError
from warren.settings import ModelSettings, Settings, did_you_mean
from workers.model_gateway.config import ModelConfig

SCRIPTED = "scripted"


def model_of(typed: str, environment: str) -> str:
    """The model that tasks name: the environment's own policy is `scripted/<environment>`."""
    return f"{SCRIPTED}/{environment}" if typed == SCRIPTED else typed


def served(names: Iterable[str], settings: Settings) -> dict[str, ModelConfig]:
    """The endpoints of these models; scripted ones have none. Raises UsageError."""
    return {name: _config(name, settings.models) for name in names if not name.startswith(SCRIPTED)}


def _config(name: str, known: Mapping[str, ModelSettings]) -> ModelConfig:
    model = known.get(name)
    if model is None:
        raise UsageError(f"unknown model {name!r}{did_you_mean(name, [*known, SCRIPTED])}")
    return ModelConfig(
        name=name,
        base_urls=tuple(url.reveal() for url in model.base_urls),
        api_key=model.key(),
        api=model.api,
        served_name=model.served_name,
        max_concurrency=model.max_concurrency,
        try_timeout_s=model.try_timeout_s,
        requests_per_minute=model.requests_per_minute,
        tokens_per_minute=model.tokens_per_minute,
        azure=model.azure,
        price=model.price,
    )
