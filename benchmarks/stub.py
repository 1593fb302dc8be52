"""A model that costs nothing: Chat Completions over raw sockets, in a process of its own.

It answers a conversation with a tool call until that holds enough tool results, then with a text.
Answers are built once; a request costs some 20 us, so it is never what limits a benchmark.

    python -m benchmarks.stub PORT '{"steps": 2, "latency": "lognormal", "mean_s": 1.0}'

It says `first` on stdout at its first request; `GET /stats` tells what it has seen.
"""

import asyncio
import json
import math
import random
import string
import sys
import time
from array import array
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, NamedTuple

import uvloop

_TEXT: Final = "It is 4 degrees and it snows. " + "Take a coat with you. " * 20
_SAMPLE_S: Final = 0.05
#: Spread of the lognormal latency: a p99 of about three times the mean.
_SIGMA: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class StubOptions:
    """How the model behaves."""

    steps: int = 2
    """Model calls per rollout; all but the last ask for the tool."""
    tokens: int = 0
    """Generated tokens per rollout, sent with ids and logprobs as vLLM does; 0 sends none."""
    prompt_tokens: int = 500
    """Length of `prompt_token_ids`, where tokens are sent."""
    latency: str = "none"
    """`none`, `fixed` or `lognormal`."""
    mean_s: float = 0.0
    seed: int = 0


class _Asked(NamedTuple):
    """What a request wants to know of tokens besides their logprobs."""

    ids: bool
    """`return_token_ids`: the ids, those of the prompt too."""
    as_ids: bool
    """`return_tokens_as_token_ids`: an id instead of each token's text."""


_FORMS: Final = [_Asked(ids, as_ids) for ids in (False, True) for as_ids in (False, True)]


def _asks(body: bytes, option: bytes) -> bool:
    """Whether a request has the option, as true. (In what is said there, quotes are escaped.)"""
    at = body.find(option)
    return at >= 0 and body[at + len(option) :][:6].lstrip(b" :").startswith(b"true")


class Model:
    """Answers by how far the conversation is, and what it has seen so far."""

    def __init__(self, options: StubOptions) -> None:
        self._options = options
        self._answers = {
            asked: [_answer(options, step, asked) for step in range(options.steps)]
            for asked in _FORMS
        }
        self._prompts = [_prompt(options, step) for step in range(options.steps)]
        self._chance = random.Random(options.seed)
        self._latencies_s = 0.0
        self.requests = 0
        self.in_flight = 0
        self.in_flight_max = 0
        self.samples: list[tuple[float, int, int]] = []
        """(seconds, requests so far, in flight) every 50 ms."""

    def answer(self, body: bytes) -> bytes:
        """The whole HTTP answer."""
        asked = _Asked(
            _asks(body, b'"return_token_ids"'), _asks(body, b'"return_tokens_as_token_ids"')
        )
        return self._answers[asked][self._step(body)]

    def tokenize(self, body: bytes) -> bytes:
        """The HTTP answer to `/tokenize`, as of vLLM: NeMo Gym asks after each model call."""
        return self._prompts[self._step(body)]

    def _step(self, body: bytes) -> int:
        return min(body.count(b'"tool_call_id"'), self._options.steps - 1)

    def latency_s(self) -> float:
        """How long this answer takes."""
        mean_s = self._options.mean_s
        match self._options.latency:
            case "fixed":
                latency_s = mean_s
            case "lognormal":
                median_s = mean_s * math.exp(-(_SIGMA**2) / 2)
                latency_s = self._chance.lognormvariate(math.log(median_s), _SIGMA)
            case _:
                return 0.0
        self._latencies_s += latency_s
        return latency_s

    def began(self) -> None:
        if not self.requests:
            sys.stdout.write("first\n")
            sys.stdout.flush()
        self.requests += 1
        self.in_flight += 1
        self.in_flight_max = max(self.in_flight_max, self.in_flight)

    def tell(self, path: bytes) -> bytes:
        """The HTTP answer to a GET: what was counted, or that we are a vLLM server."""
        if path == b"/v1/models":
            return _http({"object": "list", "data": [{"id": "bench", "owned_by": "vllm"}]})
        if path != b"/stats":
            return _http({"error": "not found"}, status="404 Not Found")
        return _http(
            {
                "requests": self.requests,
                "in_flight_max": self.in_flight_max,
                "samples": self.samples,
                "mean_s": self._latencies_s / max(self.requests, 1),
                "options": asdict(self._options),
            }
        )

    async def sample(self) -> None:
        """Note how many are in flight, for ever."""
        started = time.monotonic()
        while True:
            self.samples.append((time.monotonic() - started, self.requests, self.in_flight))
            await asyncio.sleep(_SAMPLE_S)


class Connection(asyncio.Protocol):
    """One keep-alive connection; requests on it come one after another."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._loop = asyncio.get_running_loop()
        self._buffer = b""
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end].lower()
            at = head.find(b"content-length:")
            size = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self._buffer) < end + 4 + size:
                return
            body = self._buffer[end + 4 : end + 4 + size]
            self._buffer = self._buffer[end + 4 + size :]
            self._serve(head, body)

    def _serve(self, head: bytes, body: bytes) -> None:
        if head.startswith(b"get "):
            self._transport.write(self._model.tell(head.split(b" ", 2)[1]))
        elif b"/chat/completions/render" in head:  # no token endpoints here
            self._transport.write(_http({"error": "not found"}, status="404 Not Found"))
        elif head.startswith(b"post /tokenize"):
            self._transport.write(self._model.tokenize(body))
        else:
            self._model.began()
            answer = self._model.answer(body)
            delay_s = self._model.latency_s()
            if delay_s > 0:
                self._loop.call_later(delay_s, self._send, answer)
            else:
                self._loop.call_soon(self._send, answer)

    def _send(self, answer: bytes) -> None:
        self._model.in_flight -= 1
        if not self._transport.is_closing():
            self._transport.write(answer)


def _answer(options: StubOptions, step: int, asked: _Asked) -> bytes:
    last = step == options.steps - 1
    message: dict[str, Any] = {"role": "assistant", "content": _TEXT if last else None}
    if not last:
        call = {"name": "get_weather", "arguments": '{"city": "Oslo"}'}
        message["tool_calls"] = [{"id": f"call_{step}", "type": "function", "function": call}]
    choice: dict[str, Any] = {
        "index": 0,
        "message": message,
        "finish_reason": "stop" if last else "tool_calls",
    }
    count = options.tokens // options.steps
    answer: dict[str, Any] = {
        "id": f"chatcmpl-{step}",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "bench",
        "choices": [choice],
        "usage": {"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150},
    }
    if count:
        _add_tokens(answer, choice, options, step, count, asked)
    return _http(answer)


def _add_tokens(
    answer: dict[str, Any],
    choice: dict[str, Any],
    options: StubOptions,
    step: int,
    count: int,
    asked: _Asked,
) -> None:
    """As vLLM answers `logprobs`; `token` is what was asked for, `bytes` are always its text's."""
    chance = random.Random(step)
    ids = [chance.randrange(150_000) for _ in range(count)]
    texts = [" " + "".join(chance.choices(string.ascii_lowercase, k=3)) for _ in ids]
    answer["usage"] |= {"completion_tokens": count}
    if asked.ids:
        answer["prompt_token_ids"] = _prompt_tokens(options, step)
        choice["token_ids"] = ids
    choice["logprobs"] = {
        "content": [
            {
                "token": f"token_id:{id_}" if asked.as_ids else text,
                "logprob": logprob,
                "bytes": list(text.encode()),
                "top_logprobs": [],
            }
            for id_, text, logprob in zip(ids, texts, _logprobs(chance, count), strict=True)
        ]
    }


def _logprobs(chance: random.Random, count: int) -> list[float]:
    """float32 values, as torch gives them."""
    return array("f", (-3 * chance.random() for _ in range(count))).tolist()


def _prompt_tokens(options: StubOptions, step: int) -> list[int]:
    chance = random.Random(-1 - step)
    return [chance.randrange(150_000) for _ in range(options.prompt_tokens * (step + 1))]


def _prompt(options: StubOptions, step: int) -> bytes:
    tokens = _prompt_tokens(options, step)
    return _http({"count": len(tokens), "max_model_len": 1_000_000, "tokens": tokens})


def _http(answer: dict[str, Any], status: str = "200 OK") -> bytes:
    body = json.dumps(answer, separators=(",", ":")).encode()  # as compact as vLLM
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


async def serve(port: int, options: StubOptions) -> None:
    """Answer on 127.0.0.1 until the process ends."""
    model = Model(options)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: Connection(model), "127.0.0.1", port, backlog=20_000, reuse_address=True
    )
    async with server:
        await model.sample()


def main(argv: Sequence[str]) -> None:
    """Serve on the port and with the options (JSON) given."""
    uvloop.run(serve(int(argv[0]), StubOptions(**json.loads(argv[1]))))


if __name__ == "__main__":
    main(sys.argv[1:])
