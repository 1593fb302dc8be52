"""Finds environments: built in, installed by other distributions, or in a file of the user's.

    load_environment("calculator")           built in, or an entry point (`ENTRY_POINTS`)
    load_environment("path/to/file.py")      the one Environment in it
    load_environment("path/to/file.py:env")  the Environment of that variable or name

What can't be loaded is an `InvalidEnvironment` whose text says file, line and reason.
"""

import difflib
import hashlib
import importlib.metadata
import importlib.util
import signal
import sys
import threading
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Final

from warren.checks import InvalidEnvironment
from warren.environment import Environment

#: Other distributions name their environments here: `weather = "my_package.weather:env"`.
ENTRY_POINTS: Final = "warren.environments"

#: Importing may be slow (large libraries on a network drive), but it must end.
IMPORT_S: Final = 300.0

_BUILT_IN: Final = Path(__file__).resolve().parent.parent / "environments"


def load_environment(reference: str, *, import_s: float = IMPORT_S) -> Environment:
    """The environment that `reference` names; see the module's docstring for its forms.

    An import that takes longer than `import_s` is given up (in a program's main thread).
    Raises InvalidEnvironment.
    """
    with _limited(import_s):
        return _load(reference)


def _load(reference: str) -> Environment:
    path, name = _split(reference)
    if path is not None:
        return _from_file(path, name)
    if reference in _built_in():
        found = _only(_execute(_built_in()[reference], f"environments.{reference}"), reference)
        return _referred(found, reference)
    for entry in importlib.metadata.entry_points(group=ENTRY_POINTS, name=reference):
        return _from_entry_point(entry)
    raise InvalidEnvironment(_unknown(reference))


class _Endless(BaseException):
    """The import takes too long. No Exception, so that the file can't swallow it by mistake."""


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Interrupt what runs inside, sleeping included. A signal reaches only the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def late(*_: object) -> None:
        raise _Endless(f"its import does not end within {seconds:g} s")

    before = signal.signal(signal.SIGALRM, late)
    target = threading.get_ident()
    timer = threading.Timer(seconds, signal.pthread_kill, (target, signal.SIGALRM))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        signal.signal(signal.SIGALRM, before)


def list_environments() -> list[str]:
    """The names that `load_environment` knows, sorted. Nothing is imported."""
    installed = importlib.metadata.entry_points(group=ENTRY_POINTS).names
    return sorted({*_built_in(), *installed})


def _split(reference: str) -> tuple[Path | None, str]:
    """`path/to/file.py:name` -> the path and the name; no path where it is a plain name."""
    path, colon, name = reference.rpartition(":")
    if colon and path.endswith(".py"):
        return Path(path), name
    if reference.endswith(".py") or "/" in reference or "\\" in reference:
        return Path(reference), ""
    return None, ""


def _built_in() -> dict[str, Path]:
    return {path.stem: path for path in _BUILT_IN.glob("[a-z]*.py")}


def _unknown(reference: str) -> str:
    known = list_environments()
    file = Path(f"{reference}.py")
    meant = _did_you_mean(f"the file {str(file)!r}" if file.is_file() else "", reference, known)
    return (
        f"unknown environment {reference!r}{meant} "
        f"Known are {', '.join(known)}, or a file: path/to/file.py"
    )


def _did_you_mean(sure: str, given: str, known: Iterable[str]) -> str:
    close = [sure] if sure else [repr(word) for word in difflib.get_close_matches(given, known, 1)]
    return f"; did you mean {close[0]}?" if close else "."


def _from_file(path: Path, name: str) -> Environment:
    if not path.is_file():
        raise InvalidEnvironment(f"environment file {str(path)!r} does not exist")
    if path.suffix != ".py":
        raise InvalidEnvironment(f"environment file {str(path)!r} is not a .py file")
    path = path.resolve()
    module = _execute(path, _module_name(path))
    found = _named(module, name, path) if name else _only(module, str(path))
    return _referred(found, f"{path}:{_variable(module, found)}")


def _from_entry_point(entry: importlib.metadata.EntryPoint) -> Environment:
    try:
        loaded = entry.load()
    except KeyboardInterrupt:
        raise
    except BaseException as e:  # anything may happen in it: it is the author's code
        raise InvalidEnvironment(f"environment {entry.name!r} ({entry.value}): {_told(e)}") from e
    if isinstance(loaded, ModuleType):
        loaded = _only(loaded, entry.value)
    if not isinstance(loaded, Environment):
        raise InvalidEnvironment(f"entry point {entry.name!r} ({entry.value}) is no Environment")
    return _referred(loaded, entry.name)


def _referred(environment: Environment, reference: str) -> Environment:
    environment.spec()  # what doesn't fit together is said now, not in a worker
    environment.reference = reference
    return environment


def _module_name(path: Path) -> str:
    """Unique per file, so that two files of one name can be loaded side by side."""
    return f"warren_environment_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}_{path.stem}"


def _execute(path: Path, module_name: str) -> ModuleType:
    """Run the file as a module, once per process; files beside it can be imported by it."""
    known = sys.modules.get(module_name)
    if known is not None and known.__file__ == str(path):
        return known
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise InvalidEnvironment(f"{path}: Python can't import it")
    module = importlib.util.module_from_spec(spec)
    if not path.is_relative_to(_BUILT_IN) and str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except KeyboardInterrupt:  # of whoever waits for it
        del sys.modules[module_name]
        raise
    except BaseException as e:  # anything may happen in it: it is the author's code
        del sys.modules[module_name]
        raise InvalidEnvironment(_import_failure(path, e)) from e
    return module


def _import_failure(path: Path, error: BaseException) -> str:
    if isinstance(error, InvalidEnvironment) and str(path) in str(error):
        return str(error)
    if isinstance(error, SyntaxError):
        return f"{error.filename or path}:{error.lineno or 0}: {_told(error)}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    return f"{path}:{lines[-1] if lines else 0}: {_told(error)}"


def _told(error: BaseException) -> str:
    if isinstance(error, InvalidEnvironment | _Endless):
        return str(error)
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg}"
    return f"{type(error).__name__}: {error}"


def _environments(module: ModuleType) -> dict[str, Environment]:
    """By variable; one that has two variables counts once."""
    found: dict[str, Environment] = {}
    for variable, value in vars(module).items():
        if isinstance(value, Environment) and value not in found.values():
            found[variable] = value
    return found


def _variable(module: ModuleType, environment: Environment) -> str:
    return next(k for k, v in _environments(module).items() if v is environment)


def _only(module: ModuleType, what: str) -> Environment:
    found = _environments(module)
    if not found:
        raise InvalidEnvironment(
            f"{what}: has no Environment; write `env = Environment({Path(what).stem!r})`"
        )
    if len(found) > 1:
        raise InvalidEnvironment(
            f"{what}: has {len(found)} environments; say which: "
            + " or ".join(f"{what}:{variable}" for variable in found)
        )
    return next(iter(found.values()))


def _named(module: ModuleType, name: str, path: Path) -> Environment:
    found = _environments(module)
    for variable, environment in found.items():
        if name in {variable, environment.name}:
            return environment
    if not found:
        return _only(module, str(path))
    meant = _did_you_mean("", name, found)
    raise InvalidEnvironment(f"{path}: no environment {name!r}{meant} It has {', '.join(found)}")
