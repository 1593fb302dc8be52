"""What the gateway asks of a provider, and what can come of it, by what the caller must do.

* BackendError
  - Retryable         nothing wrong with the request: try again, not before `retry_after_s`
    * StaleWeights    not at this endpoint, until it has the model's weights again
  - Refused           the provider will never take this request: fail now, with its words
  - ContextOverflow   the conversation is longer than the model's context: the rollout ends

A backend makes one request per `generate`, never retries, and masks its secrets in every text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Protocol

import msgspec

from broker.messages import ErrorKind, ModelResult
from broker.retries import Patience
from broker.topology import Lane
from workers.model_gateway.remarks import Remark
from workers.spec import Item

#: Calls end by their deadline; this only stops one that fails too fast for that to come soon.
MAX_TRIES: Final = 20
#: Most faults of providers pass in seconds (the ladder's first rung), the stubborn get the second.
_PROVIDER: Final = Patience(first_s=0.5, longest_s=(5.0, 30.0), in_slot_s=2.0)


class Terms:
    """What a call says beside its conversation. One for all calls that say the same, so what a
    backend makes of it is kept (`functools.lru_cache`) with itself as the key. Frozen.
    """

    def __init__(
        self, tools: Sequence[Item] = (), options: Mapping[str, Any] | None = None
    ) -> None:
        self.tools = tools
        """Responses tool definitions."""
        self.options: Mapping[str, Any] = {} if options is None else options
        """Further Responses request fields: sampling, tool_choice, text, reasoning, ..."""


#: So many kinds of call there are at a time: of runs, judges, rollouts with options of their own.
TERMS_KEPT: Final = 128


class BackendRequest(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One model call, as every backend gets it. A struct, since one is made for every try."""

    model: str
    """The name that the provider knows it by."""
    remarks: Sequence[Remark]
    """The conversation."""
    terms: Terms = msgspec.field(default_factory=Terms)
    known_ids: bytes = b""
    """int32: what the first `known_items` of `remarks` were tokenised and sampled as, if known."""
    known_items: int = 0
    timeout_s: float = 600.0
    """Of this one try, connecting and reading included."""
    rollout: str = ""
    """The rollout's id: what endpoints are chosen by, and what a scripted policy varies on."""
    path: str = ""
    """The call's place in its rollout."""
    run: str = ""
    lane: Lane = "normal"
    """Run and lane share an endpoint's slots fairly with others."""

    @property
    def items(self) -> list[Item]:
        """The conversation as Responses items, which other calls may share: frozen."""
        return [item for remark in self.remarks for _, _, item in remark.said]

    @property
    def request_id(self) -> str:
        """Names this call in the provider's logs."""
        return f"{self.rollout}:{self.path}"


class Backend(Protocol):
    """One endpoint of one model."""

    async def generate(self, request: BackendRequest) -> ModelResult:
        """Ask once. Raises: Retryable, Refused, ContextOverflow; nothing else on purpose."""
        ...


class BackendError(Exception):
    """The provider did not answer the call. The text is for the row, with secrets masked."""


class Retryable(BackendError):
    """Another try may succeed."""

    def __init__(
        self,
        message: str,
        *,
        kind: ErrorKind = "infra",
        retry_after_s: float | None = None,
        throttled: bool = False,
        healthy: bool = False,
        max_tries: int = MAX_TRIES,
        patience: Patience | None = None,
    ) -> None:
        super().__init__(message)
        self.kind: ErrorKind = kind
        """What it counts as when the tries are used up."""
        self.retry_after_s = retry_after_s
        """The provider asked us to wait this long; None where it said nothing."""
        self.throttled = throttled
        """Too many requests."""
        self.healthy = healthy or throttled
        """The endpoint works, so this does not count against it."""
        self.patience = patience or replace(_PROVIDER, most_tries=max_tries)
        """How often and when it is tried again."""


class StaleWeights(Retryable):
    """The endpoint has older weights than the model: it was started anew. Nothing was sent."""


class Refused(BackendError):
    """No try will succeed: a bad request, a wrong key, an unknown model."""


class ContextOverflow(BackendError):
    """The conversation, or what it asks for, does not fit the model's context."""
