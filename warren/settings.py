"""Where things are: one frozen `Settings`, read once, passed down as plain values.

The only reader of the process's environment. Precedence: flag > environment > warren.toml >
default. A wrong value or an unknown key is a UsageError that names where it stands and what is
allowed. Layers below `warren/` get numbers and URLs, never `Settings`.
"""

import difflib
import os
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

from broker.errors import UsageError
from broker.masking import Secret, Url, mask_url
from warren import secret_files
from warren.key import (
    Key,
    Unspoken,
    boolean,
    integer,
    number,
    one_of,
    path,
    shell_words,
    text,
    url,
    variable,
)
from warren.keys import KEYS
from warren.process_keys import PREFETCH
from workers.model_gateway.config import Api, Azure, Price

DEFAULT_FILE: Final = "warren.toml"
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Where things are and how this process behaves."""

    broker: Url | None = None
    """None: embedded."""
    redis: Url | None = None
    """None: a SQLite journal beside the output."""
    declare_topology: bool = True
    environments: tuple[str, ...] = ()
    """As typed: names or `path/to/file.py[:name]`."""
    model: str | None = None
    models: Mapping[str, ModelSettings] = field(default_factory=dict)
    prefetch: Mapping[str, int] = field(default_factory=lambda: dict(PREFETCH))
    """By worker kind."""
    renew_after_s: float = 600.0
    metrics_host: str = "127.0.0.1"
    metrics_port: int | None = None
    """0 takes a free one; None: the command decides."""
    log_json: bool = False
    log_level: str | None = None
    unsafe_no_sandbox: bool = False
    """Run model-written code without a sandbox."""
    debug: bool = False
    """Show tracebacks of the user's errors too."""
    crashpoint: str | None = None
    """For fault tests: where to kill ourselves."""
    block_limit_s: float = 30.0
    """User code that blocks the event loop for so long is named, and ends the process."""
    color: bool = True
    """False where NO_COLOR is set."""

    def secrets(self) -> frozenset[str]:
        """Every secret text in here, for logs to mask."""
        held = ((m.api_key, m.azure and m.azure.ad_token) for m in self.models.values())
        keys = (key.reveal() for pair in held for key in pair if key)
        urls = [u for m in self.models.values() for u in m.base_urls]
        passwords = [u.password or "" for u in (self.broker, self.redis, *urls) if u]
        return frozenset(s for s in (*keys, *passwords, *map(unquote, passwords)) if s)


class Values:
    """The value of each key and where it came from, by precedence."""

    def __init__(
        self, flags: Mapping[str, Any], environ: Mapping[str, str], file: "ConfigFile"
    ) -> None:
        self._flags = flags
        self._environ = environ
        self._file = file

    def get(self, name: str) -> Any:
        """The parsed value of the key, or its default. Raises UsageError."""
        key = KEYS[name]
        for where, raw in self._candidates(key):
            return _parse(key, where, raw)
        return key.default

    def _candidates(self, key: Key) -> Iterable[tuple[str, Any]]:
        if not key.hidden and key.name in self._flags:
            yield key.options[-1], self._flags[key.name]
        if key.secret and (held := secret_files.mounted(self._environ, key.twin)):
            yield f"{key.twin}_FILE", held
        if twin := self._environ.get(key.twin):
            yield key.twin, twin.split(",") if key.many else twin
        if key.toml is not None and key.toml in self._file.values:
            yield f"{self._file.path}: {key.toml}", self._file.values[key.toml]


def _parse(key: Key, where: str, raw: Any) -> Any:
    if isinstance(raw, Secret):  # of a file
        return _parse_unseen(key, where, raw)
    try:
        if not key.many:
            return key.parse(raw)
        if not isinstance(raw, Sequence) or isinstance(raw, str):
            raise ValueError("must be a list")
        return tuple(key.parse(one) for one in raw)
    except Unspoken as e:
        raise UsageError(f"{where} {e}") from None
    except ValueError as e:
        raise UsageError(f"{where}: {mask_url(repr(raw))} {e}") from None


def _parse_unseen(key: Key, where: str, held: Secret) -> Any:
    try:
        return key.parse(held.reveal())
    except ValueError as e:
        raise UsageError(f"{where}: what the file holds {e}") from None


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """warren.toml, flattened: `limits.max_steps` -> 50; models apart, they have names."""

    path: str
    values: Mapping[str, Any]
    models: Mapping[str, Mapping[str, Any]]


def read_file(path: Path | None) -> ConfigFile:
    """Read `path`; without one ./warren.toml, if there is one. Raises UsageError."""
    if path is None and not Path(DEFAULT_FILE).is_file():
        return ConfigFile("", {}, {})
    chosen = path or Path(DEFAULT_FILE)
    try:
        tree = tomllib.loads(chosen.read_text(encoding="utf-8"))
    except OSError as e:
        raise UsageError(f"cannot read {chosen}: {e.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise UsageError(f"{chosen} is not valid TOML: {e}") from None
    models = tree.pop("models", {})
    if not isinstance(models, dict) or not all(isinstance(m, dict) for m in models.values()):
        raise UsageError(f'{chosen}: models must be tables, [models."NAME"]')
    values = dict(_flatten(tree, ""))
    keys = {key.toml: key for key in KEYS.values() if key.toml}
    _refuse_unknown(str(chosen), values, list(keys))
    for place, raw in values.items():  # all of it, whatever this command uses
        _parse(keys[place], f"{chosen}: {place}", raw)
    return ConfigFile(str(chosen), values, models)


def _flatten(tree: Mapping[str, Any], prefix: str) -> Iterable[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _refuse_unknown(where: str, given: Iterable[str], known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            raise UsageError(f"{where}: unknown key {name!r}{did_you_mean(name, known)}")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or else what is known, as the end of an error's sentence."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1)
    return f"; did you mean {close[0]!r}?" if close else "; known: " + ", ".join(names)


def load(flags: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> "Loaded":
    """Read flags, environment and file once; all that is needed is in the answer.

    `flags` holds only what was given, by key name, as text (`config` names the file). Raises
    UsageError.
    """
    env = os.environ if environ is None else environ
    config = flags.get("config") or env.get("WARREN_CONFIG")
    file = read_file(Path(config) if config else None)
    values = Values(flags, env, file)
    return Loaded(_settings(values, file, env), values)


@dataclass(frozen=True, slots=True)
class Loaded:
    """The settings, and the values that the command's own options are made from."""

    settings: Settings
    values: Values


def _settings(values: Values, file: ConfigFile, environ: Mapping[str, str]) -> Settings:
    get = values.get
    return Settings(
        broker=get("broker"),
        redis=get("redis"),
        declare_topology=get("topology") == "declare",
        environments=get("environments"),
        model=get("model"),
        models=_models(values, file, environ),
        prefetch={kind: get(f"prefetch_{kind}") for kind in PREFETCH},
        renew_after_s=get("renew_after"),
        metrics_host=get("metrics_host"),
        metrics_port=get("metrics_port"),
        log_json=get("log_json"),
        log_level=get("log_level"),
        unsafe_no_sandbox=get("unsafe_no_sandbox"),
        debug=get("debug"),
        crashpoint=get("crashpoint"),
        block_limit_s=get("block_limit"),
        color=not environ.get("NO_COLOR"),
    )


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


def _models(
    values: Values, file: ConfigFile, environ: Mapping[str, str]
) -> dict[str, ModelSettings]:
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
    given = dict(_flatten(table, ""))
    for secret in _NOT_HERE & given.keys():
        raise UsageError(
            f"{where}: {secret} must not stand here: use {secret}_env or {secret}_file"
        )
    _refuse_unknown(where, given, list(_MODEL_KEYS))
    parsed: dict[str, dict[str, Any]] = {"": {}, "azure": {}, "price": {}}
    for key, raw in given.items():
        one = Key(name=key, help="", parse=_MODEL_KEYS[key], many=key == "base_urls")
        group, _, field_ = key.rpartition(".")
        parsed[group][field_] = _parse(one, f"{where} {key}", raw)
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


def debugging() -> bool:
    """Whether WARREN_DEBUG asks for tracebacks; needed before settings could be read."""
    return os.environ.get("WARREN_DEBUG", "").lower() in {"1", "true", "yes", "on"}


def block_limit_s() -> float:
    """WARREN_BLOCK_LIMIT, for processes that need no other setting. Raises UsageError."""
    limit: float = Values({}, os.environ, ConfigFile("", {}, {})).get("block_limit")
    return limit


def child_environment(settings: Settings) -> dict[str, str]:
    """The environment of a child process that shall find the same broker and store.

    URLs hold passwords, so they travel here and not on a command line that everybody can read.
    """
    urls = {"WARREN_BROKER": settings.broker, "WARREN_REDIS": settings.redis}
    given = {name: url.reveal() for name, url in urls.items() if url}
    files = {f"{name}_FILE" for name in given}  # what they hold is in `given`
    return {**{k: v for k, v in os.environ.items() if k not in files}, **given}
