"""What an environment's author may write, and the errors that say what is wrong with the rest.

Every text begins with file, line and function, and ends with what to write instead.
"""

import inspect
import json
import math
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from broker.errors import UsageError
from broker.names import is_name
from workers.spec import Item

Function = Callable[..., Any]


class InvalidEnvironment(UsageError):
    """An environment's author made a mistake: where, what, and how to put it right."""


def where(function: Function) -> str:
    """`path/to/file.py:12: get_weather`, for error texts."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    name = getattr(function, "__name__", repr(function))
    return f"{code.co_filename}:{code.co_firstlineno}: {name}" if code else name


def function_of(value: object, role: str, *, yields: bool = False) -> Function:
    """`value`, if it is a function that can be called and awaited; for decorators' arguments.

    `yields`: it must be an async generator instead.
    """
    if not (inspect.isfunction(value) or inspect.ismethod(value)):
        raise InvalidEnvironment(
            f"@env.{role} takes a function, but got {value!r}; "
            f"write `@env.{role}` or `@env.{role}(...)` above a `def`"
        )
    if yields and not inspect.isasyncgenfunction(value):
        raise InvalidEnvironment(
            f"{where(value)}: must be `async def` and `yield` the live object once; "
            "what follows the `yield` closes it"
        )
    if yields:
        return typing.cast(Function, value)
    if inspect.isgeneratorfunction(value) or inspect.isasyncgenfunction(value):
        raise InvalidEnvironment(f"{where(value)}: must return its value, not yield it")
    return typing.cast(Function, value)


def parameters_of(function: Function) -> dict[str, inspect.Parameter]:
    """Its parameters by name, all of which can be passed by name."""
    parameters = dict(inspect.signature(function).parameters)
    for parameter in parameters.values():
        if parameter.kind in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD}:
            raise InvalidEnvironment(
                f"{where(function)}: takes `{parameter}`; "
                "name every argument, so that it can stand in a schema"
            )
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise InvalidEnvironment(
                f"{where(function)}: `{parameter.name}` is positional-only, "
                "but Warren passes arguments by name; remove the `/`"
            )
    return parameters


def hints_of(function: Function) -> dict[str, Any]:
    """Its annotations, resolved."""
    try:
        return typing.get_type_hints(inspect.unwrap(function), include_extras=True)
    except (NameError, AttributeError, SyntaxError, TypeError) as e:
        raise InvalidEnvironment(f"{where(function)}: an annotation can't be read: {e}") from e


def checked_name(name: str) -> str:
    if not isinstance(name, str) or not is_name(name):
        raise InvalidEnvironment(
            f"{name!r} can't name an environment; use 1 to 64 of a-z, 0-9, _ and -"
        )
    return name


def checked_range(name: str, range_: tuple[float, float]) -> tuple[float, float]:
    try:
        low, high = (float(bound) for bound in range_)
    except (TypeError, ValueError):
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise InvalidEnvironment(
            f"environment {name!r}: reward_range={range_!r} is not (low, high) with low < high"
        )
    return low, high


def checked_text(name: str, key: str, value: object) -> str:
    if not isinstance(value, str):
        raise InvalidEnvironment(f"environment {name!r}: {key}={value!r:.80} is not a text")
    return value


def checked_requires(name: str, requires: Mapping[str, str]) -> dict[str, str]:
    if not isinstance(requires, Mapping) or not all(
        isinstance(text, str) for pair in requires.items() for text in pair
    ):
        raise InvalidEnvironment(
            f"environment {name!r}: requires={requires!r:.80} is not a dict from modules to what "
            'must be installed, like {"numpy": "numpy"}'
        )
    return dict(requires)


def checked_examples(name: str, examples: Sequence[Item]) -> tuple[Item, ...]:
    if not isinstance(examples, list | tuple):
        raise InvalidEnvironment(
            f"environment {name!r}: examples={examples!r:.80} is not a list of Responses items"
        )
    for i, item in enumerate(examples):
        if not (isinstance(item, dict) and ("role" in item or "type" in item) and _is_json(item)):
            raise InvalidEnvironment(
                f"environment {name!r}: examples[{i}] is no Responses item, "
                'for example {"role": "user", "content": "..."}'
            )
    return tuple(examples)


def _is_json(value: object) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def takes(function: Function, count: int, rule: str) -> None:
    if len(parameters_of(function)) != count:
        raise InvalidEnvironment(f"{where(function)}: {rule}")


def one_of(function: Function, key: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        known = ", ".join(repr(word) for word in allowed)
        raise InvalidEnvironment(
            f"{where(function)}: {key}={value!r} is unknown; use one of {known}"
        )


def positive(function: Function, key: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise InvalidEnvironment(f"{where(function)}: {key}={value!r} is not a number above 0")


def type_name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)
