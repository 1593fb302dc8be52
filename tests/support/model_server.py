"""A model behind HTTP that remembers: which step of which task was asked, by which gateway, when.

It plays the environments in tests/faults/environments: the first answer calls the tool that the
task names, the second one repeats what the tool said. Answers depend on the request alone. It can
also refuse, storm with 429s and hang, as providers do.
"""

import asyncio
import contextlib
import json
import re
import time
import zlib
from collections import Counter
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from aiohttp import web

Step = tuple[str, int, str]
"""The run, the number of the task, and which call of it."""


@dataclass(eq=False, slots=True)
class Asked:
    """One request that was not refused: it costs what a generation costs."""

    step: Step
    gateway: str
    """Its API key: the cluster gives each process its own."""
    at: float
    """Monotonic seconds."""
    answered_at: float | None = None
    hung: bool = False
    """Whether it was never going to be answered."""


class ModelServer:
    """OpenAI's chat completions, as much of it as Warren asks for."""

    def __init__(self) -> None:
        self.port = 0
        self.asks: list[Asked] = []
        self.answered: Counter[Step] = Counter()
        self.answered_at: list[float] = []
        """Monotonic seconds of every answer."""
        self.slow: dict[int, float] = {}
        """Latency of single tasks, in seconds."""
        self.in_flight = 0
        self.refused: Counter[int] = Counter()
        """Requests that got an error, by status."""
        self.reset()

    def reset(self) -> None:
        """Forget what was asked so far, behave well."""
        self.asks.clear()
        self.answered.clear()
        self.answered_at.clear()
        self.slow.clear()
        self.refused.clear()
        self.latency_s = 0.2
        self.spread = 0.0
        """Share of the latency by which steps differ, so that they do not answer in waves."""
        self.errors = 0
        """So many requests to come get a 500."""
        self.storming = False
        """While it is set, every request gets a 429."""
        self.hangs = 0
        """So many requests to come get no answer at all."""

    @property
    def url(self) -> str:
        """For `base_urls`."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def asked(self) -> Counter[Step]:
        """How often each step was asked for."""
        return Counter(ask.step for ask in self.asks)

    def rate(self, since: float, until: float) -> float:
        """Answers per second between two moments of the monotonic clock."""
        return sum(since <= at < until for at in self.answered_at) / (until - since)

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncGenerator[None]:
        """Listen while the context is open."""
        app = web.Application(client_max_size=1 << 26)
        app.router.add_post("/v1/chat/completions", self._complete)
        runner = web.AppRunner(
            app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True
        )
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0, backlog=1024)
            await site.start()
            self.port = runner.addresses[0][1]
            yield
        finally:
            await runner.cleanup()

    async def _complete(self, request: web.Request) -> web.Response:
        body = await request.json()
        self._maybe_refuse()
        step = step_of(body["messages"])
        gateway = request.headers.get("Authorization", "").removeprefix("Bearer ")
        ask = Asked(step, gateway, time.monotonic())
        self.asks.append(ask)
        self.in_flight += 1
        try:
            if self.hangs:
                self.hangs -= 1
                ask.hung = True
                await asyncio.Event().wait()
            await asyncio.sleep(self._latency_of(step))
        finally:
            self.in_flight -= 1
        if request.transport is None or request.transport.is_closing():
            raise web.HTTPServiceUnavailable
        ask.answered_at = time.monotonic()
        self.answered[step] += 1
        self.answered_at.append(ask.answered_at)
        return web.json_response(_completion(body, step))

    def _maybe_refuse(self) -> None:
        if self.storming:
            self.refused[429] += 1
            raise web.HTTPTooManyRequests(headers={"Retry-After": "1"})
        if self.errors:
            self.errors -= 1
            self.refused[500] += 1
            raise web.HTTPInternalServerError

    def _latency_of(self, step: Step) -> float:
        drawn = zlib.crc32(repr(step).encode()) / 2**31 - 1  # -1 .. 1, the same each time
        return self.slow.get(step[1], self.latency_s * (1 + self.spread * drawn))


def step_of(messages: list[dict[str, Any]]) -> Step:
    """Whose call this is: the number in the question, and how far the conversation is."""
    question = next(m["content"] for m in messages if m["role"] == "user")
    found = re.search(r"(judge|task) (\d+)(?: vote (\d+))? of ([\w-]+)", _text(question))
    if found is None:
        raise web.HTTPBadRequest(text=f"no task in {question!r}")
    if found[1] == "judge":
        return found[4], int(found[2]), f"judge {found[3]}"
    return found[4], int(found[2]), f"step {sum(m['role'] == 'assistant' for m in messages)}"


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "".join(p.get("text", "") for p in content)


def _completion(body: dict[str, Any], step: Step) -> dict[str, Any]:
    _, number, what = step
    messages = body["messages"]
    if what.startswith("judge"):
        message: dict[str, Any] = {"role": "assistant", "content": "yes"}
    elif messages[-1]["role"] == "user":
        call = {
            "id": f"call_{number}",
            "type": "function",
            "function": {"name": "look_up", "arguments": json.dumps({"number": number})},
        }
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
    else:
        message = {"role": "assistant", "content": _text(messages[-1]["content"])}
    return {
        "id": f"chatcmpl-{number}-{what.replace(' ', '-')}",
        "object": "chat.completion",
        "created": 0,
        "model": body["model"],
        "choices": [
            {
                "index": 0,
                "message": message,
                "finish_reason": "tool_calls" if message.get("tool_calls") else "stop",
            }
        ],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
    }
