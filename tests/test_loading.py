"""Environments are found by name or by file, and what can't be loaded says where and why."""

import importlib
from pathlib import Path

import pytest

from warren import InvalidEnvironment, list_environments, load_environment

GOOD = """
from warren import Environment
import helper_beside
one = Environment("first", system_prompt=helper_beside.PROMPT)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "helper_beside.py").write_text("PROMPT = 'hello'", encoding="utf-8")
    return tmp_path


def write(folder: Path, text: str) -> str:
    path = folder / "mine.py"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_built_in_environments_are_found_by_name() -> None:
    assert {"calculator", "weather"} <= set(list_environments())
    env = load_environment("calculator")
    assert env.name == "calculator"
    assert env.reference == "calculator"
    assert env.tasks is not None
    assert env.tasks.is_file()


def test_every_listed_environment_loads_under_its_own_name() -> None:
    for name in list_environments():
        assert load_environment(name).name == name


def test_a_file_is_loaded_with_what_lies_beside_it(folder: Path) -> None:
    env = load_environment(write(folder, GOOD))
    assert env.spec().system_prompt == "hello"
    assert env.reference == f"{folder}/mine.py:one"
    assert env.source == f"{folder}/mine.py"


@pytest.mark.parametrize("name", ["two", "second"])
def test_one_of_several_is_chosen_by_variable_or_name(folder: Path, name: str) -> None:
    path = write(folder, f"{GOOD}\ntwo = Environment('second')\nalso_one = one")
    assert load_environment(f"{path}:{name}").name == "second"
    with pytest.raises(InvalidEnvironment, match=r"has 2 environments; say which: .*:one or"):
        load_environment(path)
    with pytest.raises(InvalidEnvironment, match=r"no environment 'tow'; did you mean 'two'\?"):
        load_environment(f"{path}:tow")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("\nimport no_such_module", r"mine.py:2: ModuleNotFoundError: No module named 'no_such"),
        ("x = 1\n\ndef f(:\n", r"mine.py:3: SyntaxError: "),
        ("def f():\n    return 1 / 0\nf()", r"mine.py:2: ZeroDivisionError: division by zero"),
        ("raise SystemExit(1)", r"mine.py:1: SystemExit: 1"),
        ("class End(BaseException): ...\nraise End('x')", r"mine.py:2: End: x"),
        # a ValueError before Python 3.11.4
        ("x = 1\0", r"mine.py:0: \w+Error: source code string cannot contain null"),
        ("x = 1", r"mine.py: has no Environment; write `env = Environment\('mine'\)`"),
        (
            "from warren import Environment\nenv = Environment('a b')",
            r"mine.py:2: 'a b' can't name an environment",
        ),
        (
            "from warren import Environment\nenv = Environment('a')\nenv.tool(4)",
            r"mine.py:3: @env.tool takes a function, but got 4",
        ),
        (
            "from warren import Environment\nenv = Environment('a')\n@env.tool\n"
            "def f(state: int) -> int: return 1",
            r"mine.py:3: f: takes `state`, but there is no @env.setup",
        ),
    ],
)
def test_a_file_that_fails_says_line_and_reason(folder: Path, text: str, said: str) -> None:
    with pytest.raises(InvalidEnvironment, match=said):
        load_environment(write(folder, text))


@pytest.mark.parametrize("endless", ["while True: pass", "import time; time.sleep(3600)"])
def test_an_import_that_never_ends_is_given_up_and_named(folder: Path, endless: str) -> None:
    path = write(folder, f"x = 1\n{endless}")
    with pytest.raises(InvalidEnvironment, match=r"mine.py:2: its import does not end within 0.2"):
        load_environment(path, import_s=0.2)


def test_an_unknown_name_is_told_with_the_nearest_and_all_known() -> None:
    with pytest.raises(InvalidEnvironment, match=r"did you mean 'calculator'\? Known are .*weath"):
        load_environment("calculater")
    with pytest.raises(InvalidEnvironment, match=r"environment file 'no/such.py' does not exist"):
        load_environment("no/such.py")


def test_a_forgotten_file_ending_is_noticed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder, GOOD)
    monkeypatch.chdir(folder)
    with pytest.raises(InvalidEnvironment, match=r"did you mean the file 'mine.py'\?"):
        load_environment("mine")


def test_other_distributions_bring_environments(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "other_distribution.py").write_text(
        "from warren import Environment\nenv = Environment('theirs')", encoding="utf-8"
    )
    info = folder / "other-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[warren.environments]\ntheirs = other_distribution:env\nbroken = no_such_thing:env\n"
    )
    monkeypatch.syspath_prepend(folder)
    importlib.invalidate_caches()
    assert "theirs" in list_environments()
    env = load_environment("theirs")
    assert (env.name, env.reference) == ("theirs", "theirs")
    with pytest.raises(InvalidEnvironment, match=r"'broken' \(no_such_thing:env\): ModuleNotFou"):
        load_environment("broken")
