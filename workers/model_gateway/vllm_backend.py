"""A vLLM server, the fast way: chat with token ids and logprobs, read straight into packed arrays.

What the engine sampled is what is recorded: every call's whole prompt as token ids, its generated
ids with the end token, and their logprobs, all or nothing. All sampling parameters are sent, since
the server's generation config would fill in what is left out.
"""

import contextlib
import functools
import struct
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from broker import codec
from broker.messages import ModelResult, Tokens, VersionSpan
from broker.names import new_id
from broker.topology import Lane
from workers.model_gateway.answer_chat import chat_usage, instead, json_object
from workers.model_gateway.answers import completed
from workers.model_gateway.asgi import Asks
from workers.model_gateway.backend import (
    TERMS_KEPT,
    BackendError,
    BackendRequest,
    Refused,
    Retryable,
    StaleWeights,
    Terms,
)
from workers.model_gateway.config import ModelConfig
from workers.model_gateway.congestion import EngineLoad
from workers.model_gateway.conversion import (
    MALFORMED,
    UNSENDABLE,
    assistant_items,
)
from workers.model_gateway.failures import ended_early, unusable
from workers.model_gateway.fields import chat_terms
from workers.model_gateway.http import Body
from workers.model_gateway.remarks import chat_messages
from workers.model_gateway.server import ModelServer
from workers.model_gateway.versions import VersionReader
from workers.model_gateway.vllm_tokens import Continued, TokenPath

#: What vLLM samples with when nobody says otherwise.
_SAMPLING: Final = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
}
_TOKENS: Final = {"return_token_ids": True, "logprobs": True, "top_logprobs": 0}
#: Lower runs first, where the server has `--scheduling-policy priority`; 0 is its default.
_PRIORITY: Final[Mapping[Lane, int]] = {"resume": -1, "normal": 0, "bulk": 1, "suspect": 1}
#: They drop ids, logprobs or calls that stay in the tokens.
_NEVER_SENT: Final = ("include_reasoning", "parallel_tool_calls")
_LOAD_TIMEOUT_S: Final = 5.0


class _Logprob(msgspec.Struct, gc=False):
    logprob: float


class _Logprobs(msgspec.Struct, gc=False):
    content: list[_Logprob] | None = None


class _Choice(msgspec.Struct, gc=False):
    message: dict[str, Any]
    finish_reason: str | None = None
    token_ids: list[int] | None = None
    logprobs: _Logprobs | None = None


class _Answer(msgspec.Struct, gc=False):
    choices: list[_Choice]
    id: str = ""
    model: str = ""
    prompt_token_ids: list[int] | None = None
    usage: dict[str, Any] | None = None


class _Said(msgspec.Struct, gc=False):
    """An answer, its tokens packed: as objects they would fill a processor's caches."""

    answer: _Answer
    tokens: Tokens | None
    sampled: int | None
    """How many tokens the engine sampled, if it says so."""


class VllmBackend:
    """One vLLM server, or the one `inside` this process."""

    def __init__(self, config: ModelConfig, base_url: str, inside: Asks | None = None) -> None:
        self._config = config
        self._server = ModelServer(config, base_url, inside)
        self._decoder = msgspec.json.Decoder(_Answer)
        self._versions = VersionReader(self._weight_info)
        self._wanted: int | None = None
        self._tokens = TokenPath(self._post_root)

    async def generate(self, request: BackendRequest) -> ModelResult:
        """Ask once (backend.Backend)."""
        try:
            body = chat_body(request)
            packed = msgspec.json.encode(body)
        except UNSENDABLE as e:
            raise Refused(f"the conversation cannot be sent: {type(e).__name__}: {e}") from e
        started = time.monotonic()
        with self._server.within(request.timeout_s):
            said, versions = await self._ask(request, body, packed)
        seconds = time.monotonic() - started
        return self._result(said, request, versions, seconds)

    async def _ask(
        self, request: BackendRequest, body: dict[str, Any], packed: bytes
    ) -> tuple[_Said, VersionSpan | None]:
        """The answer, and the versions that can have sampled it."""
        before = await self._versions.known()
        if self._wanted is not None and (before is None or before < self._wanted):
            has = "those of its start" if before is None else f"version {before}"
            raise StaleWeights(f"it has {has}, not version {self._wanted} of the weights")
        continued = None
        if request.known_ids:
            continued = await self._tokens.generate(request, body)
        if continued is None:
            path = f"{self._server.base}/chat/completions"
            said = await self._server.post_and_read(path, packed, self._read)
            return said, None if before is None else await self._versions.span(before)
        said = self._read_continued(continued)
        return said, continued.versions or await self._versions.span(before)

    async def owners(self, timeout_s: float) -> set[str]:
        """Who owns the models listed there; empty where none are. Raises BackendErrors."""
        return await self._server.owners(timeout_s)

    async def alive(self, timeout_s: float) -> bool:
        """Whether the engine says it is healthy (endpoint.Probed)."""
        try:
            with self._server.within(timeout_s):
                await self._server.get(f"{self._server.root}/health")
        except Retryable:
            return False
        except BackendError:
            pass
        return True

    async def metrics(self) -> str:
        """The engine's own, as Prometheus reads them. Raises BackendErrors, UnicodeDecodeError."""
        with self._server.within(_LOAD_TIMEOUT_S):
            return (await self._server.get(f"{self._server.root}/metrics")).decode()

    async def load(self) -> EngineLoad | None:
        """The engine's own figures; None where it has no metrics."""
        try:
            return engine_load(await self.metrics())
        except Retryable:
            return EngineLoad(running=0, waiting=0, kv_used=0.9)  # unknown: neither up nor down
        except (BackendError, UnicodeDecodeError):
            return None

    @property
    def resent(self) -> int:
        """Requests sent twice (endpoint.Probed)."""
        return self._server.resent

    def policy_changed(self, version: int | None) -> None:
        """It may have new weights (endpoint.Probed)."""
        self._wanted = version
        self._versions.changed()

    async def close(self) -> None:
        """Close the connections."""
        await self._server.close()

    async def _post_root(self, path: str, body: Mapping[str, Any]) -> Body:
        return await self._server.post(self._server.root + path, msgspec.json.encode(body))

    async def _weight_info(self) -> int | None:
        """The engine's policy version; None where it has none, or is not in dev mode."""
        try:
            info = msgspec.json.decode(await self._server.get(f"{self._server.root}/weight_info"))
        except Refused:
            return None
        except msgspec.DecodeError as e:
            raise unusable(f"its weight info is not JSON ({e})") from e
        return version_in(info)

    def _read(self, body: Body) -> _Said:
        """Raises Retryable for what is no answer, or whose tokens don't fit each other."""
        answer = self._decoded(body)
        choice = answer.choices[0]
        logprobs = choice.logprobs.content if choice.logprobs else None
        tokens = _tokens(
            answer.prompt_token_ids,
            choice.token_ids,
            None if logprobs is None else [token.logprob for token in logprobs],
        )
        sampled = None if choice.token_ids is None else len(choice.token_ids)
        answer.prompt_token_ids = choice.token_ids = choice.logprobs = None
        return _Said(answer, tokens, sampled)

    def _decoded(self, body: Body) -> _Answer:
        try:
            answer = self._decoder.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
            said = json_object(body)  # raises what an error or a web page says
            raise unusable(f"it is no chat completion ({e}){instead(said)}") from e
        if not answer.choices:
            raise unusable("it has no choices")
        if error := ended_early(answer.choices[0].finish_reason):
            raise error
        return answer

    def _read_continued(self, continued: Continued) -> _Said:
        """The chat answer that the server made of its tokens, with these tokens."""
        if error := ended_early(continued.finish_reason):
            raise error
        tokens = _tokens(continued.prompt_ids, continued.token_ids, continued.logprobs)
        return _Said(self._decoded(continued.chat), tokens, len(continued.token_ids))

    def _result(
        self,
        said: _Said,
        request: BackendRequest,
        versions: VersionSpan | None,
        seconds: float,
    ) -> ModelResult:
        answer, tokens = said.answer, said.tokens
        choice = answer.choices[0]
        try:
            items = codec.pack_json(completed(assistant_items(choice.message), request))
        except MALFORMED as e:
            raise unusable(f"its message is malformed ({type(e).__name__}: {e})") from e
        return ModelResult(
            items=items,
            finish_reason=_finish_reason(choice, said.sampled, request),
            usage=chat_usage(answer.usage, self._config.price),
            tokens=tokens,
            continues=tokens is not None and self._tokens.there,
            versions=versions,
            model=answer.model,
            response_id=answer.id,
            seconds=seconds,
        )


def chat_body(request: BackendRequest) -> dict[str, Any]:
    """The Chat Completions request that makes vLLM tell the tokens.

    Each try has a request id of its own: the one that was cut may still be running there.
    """
    return {
        "model": request.model,
        "messages": chat_messages(request.remarks),
        "request_id": f"{request.request_id}:{new_id()[:8]}",
        **_fields(request.terms, request.lane),
    }


@functools.lru_cache(TERMS_KEPT)
def _fields(terms: Terms, lane: Lane) -> Mapping[str, msgspec.Raw]:
    """What all requests of the same terms have in common, as JSON."""
    fields = _SAMPLING | chat_terms(terms, "max_tokens")
    fields = {key: value for key, value in fields.items() if key not in _NEVER_SENT} | _TOKENS
    if priority := _PRIORITY[lane]:
        fields["priority"] = priority
    return {key: msgspec.Raw(msgspec.json.encode(value)) for key, value in fields.items()}


def _tokens(
    prompt_ids: list[int] | None, token_ids: list[int] | None, logprobs: list[float] | None
) -> Tokens | None:
    """A call's tokens, all or nothing. Raises Retryable where they don't fit each other."""
    if prompt_ids is None or token_ids is None or logprobs is None:
        return None
    if len(logprobs) != len(token_ids):
        raise unusable(f"{len(token_ids)} tokens with {len(logprobs)} logprobs")
    return Tokens(
        prompt_ids=_packed("i", prompt_ids),
        generated_ids=_packed("i", token_ids),
        logprobs=_packed("f", logprobs),
    )


def _packed(kind: str, values: Sequence[float]) -> bytes:
    """Little-endian; `struct` is three times as fast at it as `array`."""
    try:
        return struct.pack(f"<{len(values)}{kind}", *values)
    except (struct.error, OverflowError) as e:
        raise unusable(f"its tokens are no {kind} numbers ({e})") from e


def _finish_reason(choice: _Choice, sampled: int | None, request: BackendRequest) -> str:
    """vLLM says `tool_calls` as soon as one was parsed, even if the answer was cut after it."""
    limit = request.terms.options.get("max_output_tokens")
    if limit and sampled is not None and sampled >= limit:
        return "length"
    return choice.finish_reason or "stop"


def version_in(info: object) -> int | None:
    """The version in an answer of /weight_info: a free string, ours when it is a number."""
    value = info.get("weight_version", info.get("version")) if isinstance(info, Mapping) else None
    return int(value) if isinstance(value, str | int) and str(value).isdecimal() else None


def engine_load(metrics: str) -> EngineLoad | None:
    """The load in vLLM's Prometheus text, over all its engines; None where it is not there."""
    values: dict[str, list[float]] = {}
    for line in metrics.splitlines():
        if line.startswith("vllm:"):
            name, _, rest = line.partition("{")
            with contextlib.suppress(ValueError):
                values.setdefault(name.split(" ")[0], []).append(float(rest.rpartition(" ")[2]))
    if "vllm:num_requests_running" not in values:
        return None
    return EngineLoad(
        running=sum(values["vllm:num_requests_running"]),
        waiting=sum(values.get("vllm:num_requests_waiting", [])),
        kv_used=max(values.get("vllm:kv_cache_usage_perc", [0.0])),
    )
