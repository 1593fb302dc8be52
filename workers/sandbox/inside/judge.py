"""The tests' side: runs trusted tests against a solution that lives in another sandbox.

`solution`, as the tests import it, is a stand-in: using it asks the other sandbox. Values come
back as plain data; other objects as stand-ins that are equal to nothing but themselves.
"""

import ast
import builtins
import json
import os
import sys
import traceback
import types
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Final

from workers.sandbox.inside import wire

_MODULE_REF: Final = 0
_MAX_TEXT: Final = 500


class SolutionError(Exception):
    """The solution ended, answered nonsense, or raised an exception of its own making."""


class Link:
    """Asks the solution; counts what was asked."""

    def __init__(self, requests: BinaryIO, answers: BinaryIO) -> None:
        self.asked = 0
        self._requests, self._answers = requests, answers

    def ask(self, of: int, op: str, *args: Any, **kwargs: Any) -> Any:
        """The solution's answer, or its exception. Lists that it changed are changed here too."""
        self.asked += 1
        try:
            request = {"of": of, "op": op, "args": self._pack(list(args))}
            wire.send(self._requests, {**request, "kwargs": self._pack(kwargs)})
            answer = wire.receive(self._answers)
            if "raised" in answer:
                raise _exception(answer)
            for mine, theirs in zip(args, self._unpack(answer.get("args", [])), strict=False):
                _update(mine, theirs)
            return self._unpack(answer.get("value"))
        except (wire.WireError, RecursionError) as error:
            raise SolutionError(f"the solution: {error}") from None

    def _pack(self, value: Any) -> Any:
        return wire.pack(value, _own_ref)

    def _unpack(self, data: Any) -> Any:
        return wire.unpack(data, lambda ref: StandIn(self, ref))


class StandIn:
    """An object of the solution's. Never compares equal by the solution's wish."""

    def __init__(self, link: Link, ref: int) -> None:
        self._link, self._ref = link, ref

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._link.ask(self._ref, "get", name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._link.ask(self._ref, "call", *args, **kwargs)

    def __len__(self) -> int:
        return int(self._link.ask(self._ref, "len"))

    def __bool__(self) -> bool:
        return True

    def __getitem__(self, key: Any) -> Any:
        return self._link.ask(self._ref, "item", key)

    def __iter__(self) -> Iterator[Any]:
        iterator: Iterator[Any] = self._link.ask(self._ref, "iter")
        return iterator

    def __next__(self) -> Any:
        return self._link.ask(self._ref, "next")


def main(requests_fd: int, answers_fd: int) -> None:
    """Run the tests in tests.py or cases.json; report each on what was standard output."""
    report = open(os.dup(1), "w", encoding="utf-8")  # noqa: SIM115
    os.dup2(2, 1)  # what tests print must not look like a report
    with report, open(requests_fd, "wb") as requests, open(answers_fd, "rb") as answers:
        link = Link(requests, answers)
        try:
            names, load = _cases() if os.path.exists("cases.json") else _source()
        except (SyntaxError, ValueError) as error:
            return _say(report, broken=_text(error))
        _say(report, tests=names)
        _run(report, link, names, load)


Tests = Callable[[Link], dict[str, Callable[[], object]]]


def _run(report: Any, link: Link, names: list[str], load: Tests) -> None:
    try:
        tests = load(link)
    except Exception as error:
        if not link.asked:
            return _say(report, broken=_text(error))
        tests = dict.fromkeys(names, _raiser(error))
    for name in names:
        try:
            tests[name]()
        except Exception as error:
            if not link.asked:  # the solution had no part in it
                return _say(report, broken=_text(error))
            _say(report, test=name, error=_text(error))
        else:
            _say(report, test=name, error=None)


def _cases() -> tuple[list[str], Tests]:
    cases = wire.unpack(json.loads(Path("cases.json").read_bytes()), _no_ref)

    def load(link: Link) -> dict[str, Callable[[], object]]:
        return {case["name"]: partial(_check, link, **case) for case in cases}

    return [case["name"] for case in cases], load


def _check(link: Link, name: str, function: str, args: Any, kwargs: Any, expected: Any) -> None:
    answer = link.ask(_MODULE_REF, "get", function)(*args, **kwargs)
    assert answer == expected, f"{name} gave {answer!r:.200}, not {expected!r:.200}"


def _source() -> tuple[list[str], Tests]:
    tree = ast.parse(Path("tests.py").read_text("utf-8"), "tests.py")
    code = compile(tree, "tests.py", "exec")
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    names = [node.name for node in functions if node.name.startswith("test")]

    def load(link: Link) -> dict[str, Callable[[], object]]:
        solution = _StandInModule(link)
        sys.modules["solution"] = solution
        space: dict[str, Any] = {"__name__": "tests"}
        if not names:
            return {"tests": lambda: exec(code, _with_names(space, solution, tree))}
        exec(code, _with_names(space, solution, tree))
        return {name: space[name] for name in names}

    return names or ["tests"], load


class _StandInModule(types.ModuleType):
    """What `import solution` gives to the tests."""

    def __init__(self, link: Link) -> None:
        super().__init__("solution")
        self.__dict__["_link"] = link

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self.__dict__["_link"].ask(_MODULE_REF, "get", name)


def _with_names(space: dict[str, Any], solution: Any, tree: ast.Module) -> dict[str, Any]:
    """Tests may use the solution's names without import. We look at what the tests lack, not at
    what the solution offers: it would offer its own `len` and `all`."""
    for name in sorted(_lacking(tree)):
        try:
            space[name] = getattr(solution, name)
        except (AttributeError, SolutionError):
            continue  # the test that uses it fails
    return space


def _lacking(tree: ast.Module) -> set[str]:
    used, made = set(), set(dir(builtins))
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Load()):
                used.add(name)
            case ast.Name(id=name) | ast.arg(arg=name) | ast.alias(name=_, asname=str(name)):
                made.add(name)
            case ast.alias(name=name):
                made.add(name.partition(".")[0])
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                made.add(name)
            case ast.ExceptHandler(name=str(name)):
                made.add(name)
            case _:
                pass
    return {name for name in used - made if not name.startswith("__")}


def _exception(answer: dict[str, Any]) -> Exception:
    """As the nearest built-in one, so that tests can expect a ValueError."""
    message = str(answer.get("message", ""))
    names = answer["raised"] if isinstance(answer["raised"], list) else []
    for name in map(str, names[:20]):
        kind = getattr(builtins, name, None)
        if isinstance(kind, type) and issubclass(kind, Exception) and kind is not Exception:
            try:
                return kind(message)
            except TypeError:
                break
    return SolutionError(f"{names[0] if names else 'error'}: {message}")


def _update(mine: Any, theirs: Any) -> None:
    if type(mine) is not type(theirs):
        return
    if isinstance(mine, (list, bytearray)):
        mine[:] = theirs
    elif isinstance(mine, (dict, set)):
        mine.clear()
        mine.update(theirs)


def _own_ref(value: Any) -> int:
    if isinstance(value, StandIn):
        return value._ref
    raise TypeError(f"tests can't give a {type(value).__name__} to a solution, only plain values")


def _no_ref(ref: int) -> Any:
    raise wire.WireError(f"reference {ref} in a case")


def _raiser(error: Exception) -> Callable[[], object]:
    def fail() -> object:
        raise error

    return fail


def _text(error: BaseException) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == "tests.py"]
    where = f"line {frames[-1].lineno}: " if frames else ""
    return f"{where}{type(error).__name__}: {error}"[:_MAX_TEXT]


def _say(report: Any, **fields: Any) -> None:
    report.write(json.dumps(fields) + "\n")
    report.flush()
