"""docs/environments.md: its files are written as they stand, its commands typed as they stand."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.command import warren
from warren import load_environment
from workers import sandbox

PAGE = Path(__file__).parent.parent / "docs" / "environments.md"
BLOCK = re.compile(
    r"^```(?P<language>\w+)(?P<info>[^\n]*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE
)


@dataclass(frozen=True)
class Block:
    language: str
    info: str
    text: str

    @property
    def title(self) -> str:
        found = re.search(r'title="(.*?)"', self.info)
        assert found, f"a block without a file name is run by nobody: {self.text[:80]}"
        return found[1]


BLOCKS = [Block(*match.groups()) for match in BLOCK.finditer(PAGE.read_text(encoding="utf-8"))]
COMMANDS = [block for block in BLOCKS if block.language == "console"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the reader has saved all files."""
    folder = tmp_path_factory.mktemp("reader")
    for block in BLOCKS:
        if block.language != "console":
            (folder / block.title).write_text(block.text, encoding="utf-8")
    return folder


def test_every_environment_of_the_page_loads(folder: Path) -> None:
    files = sorted(folder.glob("*.py"))
    assert len(files) >= 7
    for file in files:
        assert load_environment(str(file)).name == file.stem


@pytest.mark.parametrize("block", COMMANDS, ids=lambda block: block.text.split("\n")[0][2:])
async def test_its_commands_do_what_it_says(folder: Path, block: Block) -> None:
    needs_sandbox = "sandbox" in block.info
    if needs_sandbox and isinstance(await sandbox.probe(), sandbox.Unavailable):
        return  # the page says that it is needed; tests/sandbox says how it is refused
    for line in block.text.splitlines():
        name, *words = shlex.split(line.removeprefix("$ "))
        assert name == "warren"
        done = warren(*words, cwd=folder).ok()
        assert "problem:" not in done.out, done.out
