"""`scripted/<environment>`: the environment's own policy plays, for demos and tests."""

import asyncio
import copy
import inspect
import time
import traceback
from typing import Any, Final, cast

from broker import codec
from broker.messages import ModelResult, Usage
from workers.limited import without_exit
from workers.model_gateway.answers import completed
from workers.model_gateway.backend import BackendRequest, Refused
from workers.spec import EnvironmentSpec, Item, PolicyRequest
from workers.threads import Threads

PREFIX: Final = "scripted/"
_BYTES_PER_TOKEN: Final = 4


def scripted_name(environment: str) -> str:
    """The model name under which an environment's policy plays."""
    return PREFIX + environment


class ScriptedBackend:
    """One environment's policy. It runs in a thread unless it is async: it is user code."""

    def __init__(self, environment: EnvironmentSpec, threads: Threads | None = None) -> None:
        if environment.policy is None:
            raise ValueError(f"environment {environment.name!r} has no scripted policy")
        self._policy = environment.policy
        self._threads = threads or Threads()

    async def generate(self, request: BackendRequest) -> ModelResult:
        """Ask the policy. Whatever it raises is its own failure: Refused, with the last lines."""
        asked = PolicyRequest(
            items=copy.deepcopy(request.items),  # user code: items and terms are others' too
            tools=copy.deepcopy(request.terms.tools),
            rollout=request.rollout,
            path=request.path,
            temperature=request.terms.options.get("temperature"),
        )
        started = time.monotonic()
        try:
            said = await without_exit(self._ask(asked))
            items = completed(_items(said), request)
            return _result(items, request, time.monotonic() - started)
        except (asyncio.CancelledError, GeneratorExit):
            raise
        except BaseException as e:  # the border to user code
            raise Refused(f"the scripted policy failed: {_last_lines(e)}") from e

    async def _ask(self, asked: PolicyRequest) -> list[Item] | str:
        said: Any = (
            self._policy(asked)
            if inspect.iscoroutinefunction(self._policy)
            else await self._threads.run(lambda: self._policy(asked))
        )
        return cast("list[Item] | str", await said if inspect.isawaitable(said) else said)


def _items(said: list[Item] | str) -> list[Item]:
    if isinstance(said, str):
        text = {"type": "output_text", "text": said, "annotations": []}
        return [{"type": "message", "role": "assistant", "content": [text]}]
    if not isinstance(said, list) or not all(isinstance(item, dict) for item in said):
        raise TypeError(f"it returned {type(said).__name__}, not text or a list of items")
    return said


def _result(items: list[Item], request: BackendRequest, seconds: float) -> ModelResult:
    packed = codec.pack(items)
    calls = any(item.get("type") == "function_call" for item in items)
    usage = Usage(
        prompt_tokens=len(codec.pack([*request.items, *request.terms.tools])) // _BYTES_PER_TOKEN,
        generated_tokens=len(packed) // _BYTES_PER_TOKEN,
    )
    return ModelResult(
        items=packed,
        finish_reason="tool_calls" if calls else "stop",
        usage=usage,
        model=request.model,
        response_id=f"scripted-{request.request_id}",
        seconds=seconds,
    )


def _last_lines(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)[-3:]).strip()
