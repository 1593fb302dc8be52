"""Where things are: one frozen `Settings`, read once, passed down as plain values.

The only reader of the process's environment. What a key's value is: values.py; models:
model_settings.py. Layers below `warren/` get numbers and URLs, never `Settings`.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from broker.masking import Url
from warren.model_settings import ModelSettings, models_of
from warren.process_keys import PREFETCH
from warren.values import ConfigFile, Values, read_file


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
        models=models_of(values, file, environ),
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
