"""The solution's side: loads untrusted code and lets the tests, elsewhere, use what it defines.

The solution shares this process and may do anything to it. All that it wins is to choose its
answers, which it may do anyway: the tests, their expectations and the verdict are never here.
"""

import json
import sys
import types
from pathlib import Path
from typing import Any, BinaryIO

from workers.sandbox.inside import wire


def main(requests_fd: int, answers_fd: int) -> None:
    """Load solution.py, then answer requests until there are no more."""
    with open(requests_fd, "rb") as requests, open(answers_fd, "wb") as answers:
        objects: list[Any] = [_load()]
        _serve(objects, requests, answers)


def _load() -> Any:
    """The solution's module, or the exception that it died of."""
    module = sys.modules["solution"] = types.ModuleType("solution")
    try:
        source = Path("solution.py").read_text("utf-8")
        exec(compile(source, "solution.py", "exec"), module.__dict__)
    except BaseException as error:
        return error
    return module


def _serve(objects: list[Any], requests: BinaryIO, answers: BinaryIO) -> None:
    while True:
        try:
            request = wire.receive(requests)
        except wire.WireError:
            return
        try:
            answer = _answer(objects, request)
        except BaseException as error:
            answer = _failure(error)
        wire.send(answers, answer)


def _answer(objects: list[Any], request: dict[str, Any]) -> dict[str, Any]:
    def to_ref(value: Any) -> int:
        objects.append(value)
        return len(objects) - 1

    if isinstance(objects[0], BaseException):
        raise objects[0]
    target = objects[request["of"]]
    args, kwargs = (wire.unpack(request[key], objects.__getitem__) for key in ("args", "kwargs"))
    value = _do(request["op"], target, args, kwargs)
    answer: dict[str, Any] = {"value": wire.pack(value, to_ref)}
    after = wire.pack(list(args), to_ref)
    if json.dumps(after) != json.dumps(request["args"]):
        answer["args"] = after  # changed in place
    return answer


def _do(op: str, target: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    match op:
        case "get":
            return getattr(target, args[0])
        case "call":
            return target(*args, **kwargs)
        case "len":
            return len(target)
        case "item":
            return target[args[0]]
        case "iter":
            return iter(target)
        case _:
            return next(target)


def _failure(error: BaseException) -> dict[str, Any]:
    names = [kind.__name__ for kind in type(error).__mro__]
    return {"raised": names, "message": str(error)[:2000]}
