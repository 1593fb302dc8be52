"""From what the user calls a model to what tasks name and gateways serve."""

from collections.abc import Iterable, Mapping

from broker.errors import UsageError
from broker.messages import Budget
from warren.model_settings import ModelSettings
from warren.settings import Settings
from warren.values import did_you_mean
from workers.model_gateway.config import ModelConfig, Price
from workers.spec import EnvironmentSpec

SCRIPTED = "scripted"


def model_of(typed: str, environment: str) -> str:
    """The model that tasks name: the environment's own policy is `scripted/<environment>`."""
    return f"{SCRIPTED}/{environment}" if typed == SCRIPTED else typed


def served(names: Iterable[str], settings: Settings) -> dict[str, ModelConfig]:
    """The endpoints of these models; scripted ones have none. Raises UsageError."""
    return {name: _config(name, settings.models) for name in names if not name.startswith(SCRIPTED)}


def asked(typed: str, judge: str | None, environment: EnvironmentSpec) -> list[str]:
    """The models that a run's tasks name: the policy's, and the judge's where there is one."""
    names = (model_of(typed, environment.name), judge or environment.judge_model)
    return [name for name in names if name is not None]


def check_priced(budget: Budget, names: Iterable[str], settings: Settings) -> None:
    """A limit in dollars that nothing counts against would never end anything.

    The gateways count with the prices of their own settings; ours must at least have some.
    """
    if budget.max_cost_usd is None:
        return
    for name in names:
        known = settings.models.get(name)
        price = known.price if known is not None else Price()
        if not (name.startswith(SCRIPTED) or price.prompt or price.generated):
            raise UsageError(
                f'--max-cost needs the price of {name!r}: [models."{name}"] in warren.toml, here'
                " and where its gateways run, with price = { prompt = 1.25, generated = 10.0 },"
                " in dollars per million tokens"
            )


def _config(name: str, known: Mapping[str, ModelSettings]) -> ModelConfig:
    model = known.get(name)
    if model is None:
        raise UsageError(f"unknown model {name!r}{did_you_mean(name, [*known, SCRIPTED])}")
    return ModelConfig(
        name=name,
        base_urls=tuple(url.reveal() for url in model.base_urls),
        api_key=model.key(),
        api=model.api,
        path=model.path,
        lora=model.lora,
        engine_args=model.engine_args,
        served_name=model.served_name,
        max_concurrency=model.max_concurrency,
        try_timeout_s=model.try_timeout_s,
        requests_per_minute=model.requests_per_minute,
        tokens_per_minute=model.tokens_per_minute,
        azure=model.azure,
        price=model.price,
    )
