"""What has to be on the disk, and started, for another tool to run a scenario."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks.scenarios import Scenario

SYSTEM_PROMPT: Final = "Answer the question; look the weather up with the tool."
#: What a collector may print, or compile, costs everybody the same.
ENVIRONMENT: Final = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONUNBUFFERED": "1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a run is, and what it talks to."""

    folder: Path
    venv: Path
    """In which the tool is installed."""
    model_url: str
    port: int
    """Free, for servers that want to be told theirs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """One run of a tool."""

    files: Mapping[str, str]
    """Text by its path in the folder, where all commands run."""
    links: Mapping[str, Path] = field(default_factory=dict)
    servers: Sequence[str] | None = None
    """The command that starts its servers."""
    ready: str = ""
    """What that says once they serve."""
    server_kinds: Mapping[str, str] = field(default_factory=dict)
    """Kind of process by a part of its working directory; any other is of the kind `rest`."""
    collect: Sequence[str]
    environment: Mapping[str, str]
    rows: str
    """Pattern of the JSONL output, in the folder."""
    is_good: Callable[[Mapping[str, Any]], bool]
    """Whether a row has its reward, and its tokens where the model sends some."""

    def write(self, folder: Path) -> None:
        """Put files and links there."""
        for name, text in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
        for name, target in self.links.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).symlink_to(target)


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Another tool."""

    name: str
    package: str
    """On PyPI."""
    prepare: Callable[[Scenario, Place], Setup]


def question(index: int) -> str:
    """The user's message of a task: as in Warren's runs."""
    return f"Task {index:08d}: what is the weather in Oslo?"
