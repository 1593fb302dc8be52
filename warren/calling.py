"""Makes an environment's functions into what workers run: arguments in, awaited value out."""

import inspect
import types
import typing
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from warren.checks import Function, InvalidEnvironment, hints_of, parameters_of, type_name, where
from warren.signatures import Signature
from workers.spec import Rollout, ToolRun, VerifierContext
from workers.threads import Threads


def caller(function: Function, threads: Threads) -> Callable[..., Awaitable[Any]]:
    """What calls a function of the user's: async ones here, others in a thread."""
    if _is_async(function):
        return function

    async def in_thread(**arguments: Any) -> Any:
        result = await threads.run(lambda: function(**arguments))
        return await result if inspect.isawaitable(result) else result

    return in_thread


def tool_runner(function: Function, signature: Signature, threads: Threads) -> Any:
    call = caller(function, threads)

    async def run(tool: ToolRun) -> object:
        arguments = signature.arguments(tool.arguments)
        if not signature.injected:
            return await call(**arguments)
        given = {
            "state": tool.state,
            "task": tool.row,
            "idempotency_key": tool.idempotency_key,
            "session": tool.session,
        }
        injected = {name: given[name] for name in signature.injected}
        return await call(**arguments, **injected)

    return run


def reward_runner(function: Function, threads: Threads) -> Any:
    names = list(parameters_of(function))
    if len(names) not in {1, 2} or names[0] in {"ctx", "session"} or names[1:] == ["rollout"]:
        raise InvalidEnvironment(
            f"{where(function)}: a reward takes `rollout`, `rollout` and `ctx`, "
            "or `rollout` and `session`"
        )
    first, takes_session = names[0], names[1:] == ["session"]
    if len(names) == 2 and not takes_session and not _is_async(function):
        raise InvalidEnvironment(
            f"{where(function)}: a reward that takes `{names[1]}` awaits it: make it `async def`"
        )
    returns = hints_of(function).get("return")
    if not _may_be_number(returns):
        raise InvalidEnvironment(
            f"{where(function)}: a reward returns a float, not {type_name(returns)}"
        )

    call = caller(function, threads)

    async def run(rollout: Rollout, ctx: VerifierContext) -> Any:
        if len(names) == 1:
            return await call(**{first: rollout})
        second = rollout.session if takes_session else ctx
        return await call(**{first: rollout, names[1]: second})

    return run


def _may_be_number(hint: Any) -> bool:
    """Whether an annotation leaves room for one: `dict[str, float]` does not."""
    kind = typing.get_origin(hint) or hint
    if not isinstance(kind, type) or kind is types.UnionType:
        return True
    return kind is object or hasattr(kind, "__float__")


def session_opener(function: Function, takes_task: bool) -> Any:
    opened = asynccontextmanager(function)

    def open_(row: Mapping[str, Any]) -> AbstractAsyncContextManager[Any]:
        return opened(**({"task": row} if takes_task else {}))

    return open_


def _is_async(function: Function) -> bool:
    return inspect.iscoroutinefunction(inspect.unwrap(function))


def setup_runner(function: Function, takes_task: bool, threads: Threads) -> Any:
    call = caller(function, threads)

    async def run(row: Mapping[str, Any]) -> object:
        return await call(**({"task": row} if takes_task else {}))

    return run
