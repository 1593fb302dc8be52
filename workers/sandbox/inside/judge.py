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


class NoTests(Exception):
    """The tests can't decide anything: our mistake, never the solution's."""


class Link:
    """Asks the solution, and knows whether it had a part in what happened."""

    def __init__(self, requests: BinaryIO, answers: BinaryIO) -> None:
        self.used = False
        """It was asked for more than its names."""
        self.lacks = False
        """It has no such name as the tests use, or died when it was loaded."""
        self._requests, self._answers = requests, answers

    @property
    def involved(self) -> bool:
        """Whether a failure can be the solution's fault."""
        return self.used or self.lacks

    def look_up(self, name: str) -> Any:
        """One of the solution's names; only a constant counts as use. Raises what `ask` does."""
        before = self.used
        try:
            found = self.ask(_MODULE_REF, "get", name)
        except Exception:
            self.lacks = True
            raise
        self.used = before or not isinstance(found, StandIn)
        return found

    def ask(self, of: int, op: str, *args: Any, **kwargs: Any) -> Any:
        """The solution's answer, or its exception. Lists that it changed are changed here too."""
        self.used = True
        try:
            request = {"of": of, "op": op, "args": self._pack(list(args))}
            wire.send(self._requests, {**request, "kwargs": self._pack(kwargs)})
            answer = wire.receive(self._answers)
            if "raised" in answer:
                raise _exception(answer, op)
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
            _say(report, tests=names)
            _run(report, link, names, load)
        except (SyntaxError, ValueError, NoTests) as error:
            _say(report, broken=_text(error))


Tests = Callable[[Link], dict[str, Callable[[], object]]]


def _run(report: Any, link: Link, names: list[str], load: Tests) -> None:
    try:
        tests = load(link)
    except Exception as error:
        if not link.involved:
            raise NoTests(_text(error)) from error
        tests = dict.fromkeys(names, _raiser(error))
    for name in names:
        try:
            tests[name]()
        except Exception as error:
            if not link.involved:
                raise NoTests(_text(error)) from error
            _say(report, test=name, error=_text(error))
        else:
            _say(report, test=name, error=None)
    if not link.involved:  # else whatever anybody writes would pass
        raise NoTests("the tests passed without using the solution: do they call it?")


def _cases() -> tuple[list[str], Tests]:
    cases = wire.unpack(json.loads(Path("cases.json").read_bytes()), _no_ref)

    def load(link: Link) -> dict[str, Callable[[], object]]:
        return {case["name"]: partial(_check, link, **case) for case in cases}

    return [case["name"] for case in cases], load


def _check(link: Link, name: str, function: str, args: Any, kwargs: Any, expected: Any) -> None:
    answer = link.ask(_MODULE_REF, "get", function)(*args, **kwargs)
    assert _same(answer, expected), f"{name} gave {_shown(answer)}, not {_shown(expected)}"


def _same(answer: Any, expected: Any) -> bool:
    """Equal as in Python, but that True is no 1, however deep: 1.0 is 1, a tuple no list."""
    if isinstance(answer, bool) or isinstance(expected, bool):
        return answer is expected
    if isinstance(expected, dict) and isinstance(answer, dict):
        keys = {key: key for key in answer}  # as the answer has them
        return answer == expected and all(
            _same(keys[k], k) and _same(answer[k], expected[k]) for k in expected
        )
    if isinstance(expected, (set, frozenset)) and isinstance(answer, (set, frozenset)):
        members = {member: member for member in answer}
        return answer == expected and all(_same(members[m], m) for m in expected)
    if isinstance(expected, (list, tuple)) and isinstance(answer, (list, tuple)):
        return answer == expected and all(map(_same, answer, expected))
    return bool(answer == expected)


def _shown(value: Any) -> str:
    try:
        return f"{value!r:.200}"
    except ValueError:  # an integer of more than 4300 digits
        return f"a {type(value).__name__} too long to show"


def _source() -> tuple[list[str], Tests]:
    tree = ast.parse(Path("tests.py").read_text("utf-8"), "tests.py")
    code = compile(tree, "tests.py", "exec")
    names = _test_names(tree)

    def load(link: Link) -> dict[str, Callable[[], object]]:
        sys.modules["solution"] = _StandInModule(link)
        space: dict[str, Any] = {"__name__": "tests"}
        if not names:
            return {"tests": lambda: exec(code, _with_names(space, link, tree))}
        exec(code, _with_names(space, link, tree))
        return {name: _found(space, name) for name in names}

    return names or ["tests"], load


def _test_names(tree: ast.Module) -> list[str]:
    """Functions `test...`, and the methods of that name in classes. Raises NoTests."""
    names = []
    for node in tree.body:
        inside = node.body if isinstance(node, ast.ClassDef) else [node]
        before = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
        for each in inside:
            if isinstance(each, ast.AsyncFunctionDef) and each.name.startswith("test"):
                raise NoTests(f"{before}{each.name} is `async def`; write `def`")
            if isinstance(each, ast.FunctionDef) and each.name.startswith("test"):
                names.append(before + each.name)
    if len(set(names)) < len(names):  # Python keeps the last one only
        raise NoTests(f"there are two tests {max(names, key=names.count)!r}")
    return names


def _found(space: dict[str, Any], name: str) -> Callable[[], object]:
    """What runs one test; each method on an object of its own."""
    kind, _, method = name.rpartition(".")
    if not kind:
        test: Callable[[], object] = space[name]
        return test

    def run() -> object:
        made = space[kind]
        if hasattr(made, "assertEqual"):  # unittest's; `debug` raises what goes wrong
            return made(method).debug()
        return getattr(made(), method)()

    return run


class _StandInModule(types.ModuleType):
    """What `import solution` gives to the tests."""

    def __init__(self, link: Link) -> None:
        super().__init__("solution")
        self.__dict__["_link"] = link

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self.__dict__["_link"].look_up(name)


def _with_names(space: dict[str, Any], link: Link, tree: ast.Module) -> dict[str, Any]:
    """Tests may use the solution's names without import. We look at what the tests lack, not at
    what the solution offers: it would offer its own `len` and `all`."""
    for name in sorted(_lacking(tree)):
        try:
            space[name] = link.look_up(name)
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


def _exception(answer: dict[str, Any], op: str) -> Exception:
    """As the nearest built-in one, so that tests can expect a ValueError."""
    message = str(answer.get("message", ""))
    names = answer["raised"] if isinstance(answer["raised"], list) else []
    if op != "next" and "StopIteration" in names:
        # a test's `all(map(check, cases))` would take it for the end of its cases, and be true
        return SolutionError("StopIteration, which only `next` may raise")
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
