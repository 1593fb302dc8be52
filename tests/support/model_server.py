"""A model behind HTTP that counts: which step of which task was asked, how often, and when.

It plays the environments in tests/faults/environments: the first answer calls the tool that the
task names, the second one repeats what the tool said. Answers depend on the request alone.
"""

import asyncio
import contextlib
import json
import re
import time
from collections import Counter
from collections.abc import AsyncGenerator
from typing import Any

from aiohttp import web

Step = tuple[str, int, str]
"""The run, the number of the task, and which call of it."""


class ModelServer:
    """OpenAI's chat completions, as much of it as Warren asks for."""

    def __init__(self) -> None:
        self.latency_s = 0.2
        self.slow: dict[int, float] = {}
        """Latency of single tasks, in seconds."""
        self.asked: Counter[Step] = Counter()
        self.answered: Counter[Step] = Counter()
        self.answered_at: list[float] = []
        """Monotonic seconds of every answer."""
        self.in_flight = 0
        self.port = 0

    @property
    def url(self) -> str:
        """For `base_urls`."""
        return f"http://127.0.0.1:{self.port}/v1"

    def reset(self) -> None:
        """Forget what was asked so far."""
        self.asked.clear()
        self.answered.clear()
        self.answered_at.clear()
        self.slow.clear()
        self.latency_s = 0.2

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncGenerator[None]:
        """Listen while the context is open."""
        app = web.Application(client_max_size=1 << 26)
        app.router.add_post("/v1/chat/completions", self._complete)
        runner = web.AppRunner(app, access_log=None)
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
        step = step_of(body["messages"])
        self.asked[step] += 1
        self.in_flight += 1
        try:
            await asyncio.sleep(self.slow.get(step[1], self.latency_s))
        finally:
            self.in_flight -= 1
        if request.transport is None or request.transport.is_closing():
            raise web.HTTPServiceUnavailable
        self.answered[step] += 1
        self.answered_at.append(time.monotonic())
        return web.json_response(_completion(body, step))


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
