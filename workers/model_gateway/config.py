"""What a model is and where it is served, as plain values from the wiring."""

import base64
from dataclasses import dataclass
from typing import Literal
from urllib.parse import unquote, urlsplit

from broker.masking import Secret

Api = Literal["auto", "chat", "responses", "vllm"]
"""`auto`: Responses at api.openai.com, else Chat Completions (vLLM servers are recognised)."""

#: Of a model with a path: how paths begin there, and what metrics call it.
INSIDE_URL = "in-process:/v1"
OPENAI_URL = "https://api.openai.com/v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Azure:
    """A deployment on Azure OpenAI. The key is the model's `api_key`, unless `ad_token` is set."""

    api_version: str
    deployment: str | None = None
    """None: named like the model."""
    ad_token: Secret | None = None
    """Microsoft Entra ID (Active Directory) token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """US dollars per million tokens."""

    prompt: float = 0.0
    generated: float = 0.0
    cached: float | None = None
    """None: like other prompt tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """One model and its endpoints."""

    name: str
    """What tasks call it; it stands in queue names."""
    base_urls: tuple[str, ...] = ()
    """Replicas, each up to `/v1` (Azure: the resource's URL); empty: OpenAI's own."""
    api_key: Secret | None = None
    api: Api = "auto"
    path: str | None = None
    """Weights that vLLM serves inside the gateway's process; None: it is served at `base_urls`."""
    engine_args: tuple[str, ...] = ()
    """Of `vllm serve`, with a `path`."""
    lora: bool = False
    """New weights are a LoRA adapter, which takes the place of the one named `served_name`."""
    azure: Azure | None = None
    served_name: str | None = None
    """What the provider calls it; None: the same."""
    max_concurrency: int = 256
    """Requests in flight per endpoint, at most."""
    try_timeout_s: float = 600.0
    """A request without a complete answer after this long is cut and made again."""
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    """Prompt and generated tokens together."""
    price: Price = Price()

    @property
    def urls(self) -> tuple[str, ...]:
        """Where it is served; OpenAI where nothing was said."""
        if self.path is not None:
            return (INSIDE_URL,)
        return self.base_urls or (OPENAI_URL,)

    @property
    def secrets(self) -> tuple[Secret, ...]:
        """All that it proves itself with, in each form in which a server can repeat it."""
        held = [self.api_key, self.azure.ad_token if self.azure else None]
        for url in self.base_urls:
            if (password := urlsplit(url).password) is not None:
                held += [Secret(password), Secret(unquote(password)), basic_auth(url)]
        return tuple(secret for secret in held if secret is not None)


def basic_auth(url: str) -> Secret | None:
    """What `Authorization: Basic` says for a URL with a user in it; else None."""
    parts = urlsplit(url)
    if parts.username is None:
        return None
    user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return Secret(base64.b64encode(user.encode()).decode())


def chosen_api(api: Api, base_url: str) -> Api:
    """The API to speak with this endpoint, where nothing but its URL is known."""
    if api != "auto":
        return api
    return "responses" if is_openai(base_url) else "chat"


def is_openai(base_url: str) -> bool:
    """Whether OpenAI itself answers there."""
    return urlsplit(base_url).hostname == "api.openai.com"
