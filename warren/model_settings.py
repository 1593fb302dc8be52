"""One model and where it is served: a `[models."NAME"]` table of warren.toml, or flags.

A wrong value is a UsageError; a key that is missing is one only for who uses that model.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from broker.errors import UsageError
from broker.masking import Secret, Url
from warren import secret_files
from warren.key import Key, boolean, integer, number, one_of, path, shell_words, text, url, variable
from warren.values import ConfigFile, Values, flatten, parse, refuse_unknown
from workers.model_gateway.config import Api, Azure, Price

DEFAULT_API_KEY_ENV: Final = "OPENAI_API_KEY"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """One model and where it is served."""

    name: str
    base_urls: tuple[Url, ...] = ()
    """Replicas, each up to `/v1`; empty: the provider's own address."""
    api: Api = "auto"
    """`auto`: Responses at OpenAI itself, vLLM's tokens where it is recognised, else Chat."""
    path: str | None = None
    """Weights that vLLM serves inside the gateway; excludes `base_urls`."""
    engine_args: tuple[str, ...] = ()
    """Of `vllm serve`, for `path`."""
    lora: bool = False
    """New weights are a LoRA adapter named `served_name`."""
    api_key_env: str | None = None
    """The variable that was named for the key; without it and a file OPENAI_API_KEY, if set."""
    api_key_file: Path | None = None
    api_key: Secret | None = None
    no_key: str = ""
    """Why there is none, where one was named."""
    served_name: str | None = None
    """What the provider calls it; None: the same."""
    max_concurrency: int = 256
    """Requests in flight per endpoint."""
    try_timeout_s: float = 600.0
    """A request without a complete answer after this long is made again."""
    requests_per_minute: float | None = None
    """Over all gateways that share the store."""
    tokens_per_minute: float | None = None
    azure: Azure | None = None
    price: Price = field(default_factory=Price)

    def key(self) -> Secret | None:
        """The API key; UsageError where one was named and is not there."""
        if self.no_key:
            raise UsageError(self.no_key)
        return self.api_key


_MODEL_KEYS: Final = {
    "base_urls": url("http", "https"),
    "api": one_of("auto", "chat", "responses", "vllm"),
    "api_key_env": variable,
    "api_key_file": path,
    "path": text,
    "lora": boolean,
    "engine_args": shell_words,
    "served_name": text,
    "max_concurrency": integer(1),
    "try_timeout_s": number(0, above=True),
    "requests_per_minute": number(0, above=True),
    "tokens_per_minute": number(0, above=True),
    "azure.api_version": text,
    "azure.deployment": text,
    "azure.ad_token_env": variable,
    "azure.ad_token_file": path,
    "price.prompt": number(0),
    "price.generated": number(0),
    "price.cached": number(0),
}
_NOT_HERE: Final = {"api_key", "azure.api_key", "azure.ad_token"}


def models_of(
    values: Values, file: ConfigFile, environ: Mapping[str, str]
) -> dict[str, ModelSettings]:
    """All models that were named, in the file or by flags. Raises UsageError."""
    models = {name: _model_of_file(file, name, each, environ) for name, each in file.models.items()}
    name = values.get("model")
    if name is not None and name != "scripted":
        models[name] = _with_flags(models.get(name, ModelSettings(name=name)), values)
    judge = values.get("judge_model")
    if judge is not None and judge != "scripted":
        known = models.get(judge, ModelSettings(name=judge))
        models[judge] = replace(known, base_urls=values.get("judge_base_url") or known.base_urls)
    return {name: _with_key(_placed(model), environ) for name, model in models.items()}


def _placed(model: ModelSettings) -> ModelSettings:
    """The model, which is in one place: inside the gateway or at its URLs. Raises UsageError."""
    who = f"model {model.name!r}"
    if model.path is None:
        if model.engine_args:
            raise UsageError(f"{who} has engine_args but no path: they are for vLLM in the gateway")
        return model
    if model.base_urls or model.azure is not None:
        raise UsageError(f"{who} has a path and base_urls or azure: it is in one place only")
    if model.api not in ("auto", "vllm"):
        raise UsageError(f"{who} has a path, so its api is vllm, not {model.api}")
    return model


def _model_of_file(
    file: ConfigFile, name: str, table: Mapping[str, Any], environ: Mapping[str, str]
) -> ModelSettings:
    where = f'{file.path}: [models."{name}"]'
    given = dict(flatten(table))
    for secret in _NOT_HERE & given.keys():
        raise UsageError(
            f"{where}: {secret} must not stand here: use {secret}_env or {secret}_file"
        )
    refuse_unknown(where, given, list(_MODEL_KEYS))
    parsed: dict[str, dict[str, Any]] = {"": {}, "azure": {}, "price": {}}
    for key, raw in given.items():
        one = Key(name=key, help="", parse=_MODEL_KEYS[key], many=key == "base_urls")
        group, _, field_ = key.rpartition(".")
        parsed[group][field_] = parse(one, f"{where} {key}", raw)
    _refuse_two(where, parsed[""].get("api_key_env"), parsed[""].get("api_key_file"), "api_key")
    return ModelSettings(
        name=name,
        **parsed[""],
        azure=_azure(where, parsed["azure"], environ),
        price=Price(**parsed["price"]),
    )


def _azure(where: str, given: Mapping[str, Any], environ: Mapping[str, str]) -> Azure | None:
    if not given:
        return None
    if "api_version" not in given:
        raise UsageError(f"{where} azure.api_version is missing, like 2024-10-21")
    return Azure(
        api_version=given["api_version"],
        deployment=given.get("deployment"),
        ad_token=_ad_token(where, given, environ),
    )


def _ad_token(where: str, given: Mapping[str, Any], environ: Mapping[str, str]) -> Secret | None:
    named, file = given.get("ad_token_env"), given.get("ad_token_file")
    _refuse_two(where, named, file, "azure.ad_token")
    if file is not None:
        return secret_files.read(file, f"{where} azure.ad_token_file")
    token = secret_files.find(environ, named) if named is not None else None
    if named is not None and token is None:
        raise UsageError(f"{where} azure.ad_token_env: {_variable(named)} is not set")
    return token


def _refuse_two(where: str, env: object, file: object, what: str) -> None:
    if env is not None and file is not None:
        raise UsageError(f"{where}: {what}_env and {what}_file: leave one of them")


def _variable(name: str) -> str:
    """How an error speaks of it. A name in small letters may be a key in the wrong place."""
    return f"the variable {name}" if name.isupper() else "the variable named there"


def _with_flags(model: ModelSettings, values: Values) -> ModelSettings:
    given = {
        "base_urls": values.get("base_url"),
        "api": values.get("api"),
        "path": values.get("model_path"),
        "engine_args": values.get("engine_args"),
    }
    known = replace(model, **{k: v for k, v in given.items() if v is not None})
    named, file = values.get("api_key_env"), values.get("api_key_file")
    _refuse_two(f"--model {model.name}", named, file, "api_key")
    if named is None and file is None:
        return known
    return replace(known, api_key_env=named, api_key_file=file)


def _with_key(model: ModelSettings, environ: Mapping[str, str]) -> ModelSettings:
    """The model with its key, or with why there is none: only who uses it has to know."""
    who = f"the API key of model {model.name!r}"
    named, file = model.api_key_env, model.api_key_file
    try:
        if file is not None:
            return replace(model, api_key=secret_files.read(file, who))
        key = secret_files.find(environ, named or DEFAULT_API_KEY_ENV)
    except UsageError as e:
        return replace(model, no_key=str(e))
    why = f"{who}: {_variable(named)} is not set" if named is not None and key is None else ""
    return replace(model, api_key=key, no_key=why)
