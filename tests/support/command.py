"""The command `warren` as a process, and a model that answers it: for tests from the outside."""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from tests.support.background import Background
from tests.support.provider import Behaviour, FakeProvider, Seen, answers, chat, running

#: No command of these tests may take longer.
LIMIT_S: Final = 60.0
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Done:
    """A command that ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The object on stdout's last line."""
        found: dict[str, Any] = json.loads(self.out.splitlines()[-1])
        return found

    def ok(self) -> "Done":
        """Itself, if it ended well."""
        assert self.code == 0, (self.code, self.out[-1500:], self.err[-3000:])
        return self


def spawn(
    *words: object,
    cwd: Path,
    stdin: int | IO[bytes] = subprocess.DEVNULL,
    stdout: int | IO[bytes] = subprocess.PIPE,
    stderr: int | IO[bytes] = subprocess.PIPE,
    variables: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start `warren WORDS` with a clean environment."""
    return _start([sys.executable, "-m", "warren", *words], cwd, stdin, stdout, stderr, variables)


def run_python(code: str, *words: object, cwd: Path) -> Done:
    """Run Python code to its end, with `words` as its arguments and pipes as `warren` has them."""
    command = [sys.executable, "-c", code, *words]
    pipe = subprocess.PIPE
    return ended(_start(command, cwd, subprocess.DEVNULL, pipe, pipe, None))


def _start(
    command: Sequence[object],
    cwd: Path,
    stdin: int | IO[bytes],
    stdout: int | IO[bytes],
    stderr: int | IO[bytes],
    variables: Mapping[str, str] | None,
) -> subprocess.Popen[bytes]:
    dropped = ("WARREN_", "OPENAI_")
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(dropped)}
    return subprocess.Popen(
        [*map(str, command)],
        cwd=cwd,
        env={**inherited, **(variables or {})},
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
    )


def ended(process: subprocess.Popen[bytes], within_s: float = LIMIT_S) -> Done:
    """Wait for its end."""
    try:
        out, err = process.communicate(timeout=within_s)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"not over after {within_s} s: {err.decode()[-3000:]}") from None
    return Done(process.returncode, (out or b"").decode(), (err or b"").decode())


def warren(*words: object, cwd: Path, **variables: str) -> Done:
    """Run `warren WORDS` to its end."""
    return ended(spawn(*words, cwd=cwd, variables=variables))


def piped(given: bytes, *words: object, cwd: Path) -> Done:
    """Run `warren WORDS` to its end with this on standard input."""
    process = spawn(*words, cwd=cwd, stdin=subprocess.PIPE)
    out, err = process.communicate(given, timeout=LIMIT_S)
    return Done(process.returncode, out.decode(), err.decode())


def at_once(*commands: Sequence[object], cwd: Path, **variables: str) -> list[Done]:
    """Run commands side by side: most of a short one is the start of its interpreter."""
    return [ended(p) for p in [spawn(*words, cwd=cwd, variables=variables) for words in commands]]


def rows_of(path: Path) -> list[Row]:
    """The rows of a JSONL file, by rollout id."""
    rows: list[Row] = [json.loads(line) for line in path.read_bytes().splitlines()]
    return sorted(rows, key=lambda row: str(row["warren"]["rollout_id"]))


def ids_of(rows: Sequence[Row]) -> list[tuple[int, int]]:
    """Task and repeat of each row, sorted."""
    return sorted((row["warren"]["task_index"], row["warren"]["repeat_index"]) for row in rows)


def rewards_of(rows: Sequence[Row]) -> dict[tuple[int, int], float | None]:
    """What each rollout got."""
    return {(r["warren"]["task_index"], r["warren"]["repeat_index"]): r["reward"] for r in rows}


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """A dataset."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return path


def asked(text: str, **more: Any) -> Row:
    """A task row."""
    return {"responses_create_params": {"input": [{"role": "user", "content": text}]}, **more}


def until(condition: Callable[[], bool], within_s: float = 30.0) -> None:
    """Wait for it."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {within_s} s"
        time.sleep(0.01)


@contextlib.contextmanager
def provider(default: Behaviour | None = None) -> Generator[FakeProvider]:
    """A model server in a thread, for as long as the context is open."""
    background = Background()
    try:
        yield background.enter(running(default))
    finally:
        background.close()


def by_request(answer: Callable[[Any], Any], *, delay_s: float = 0.0) -> Behaviour:
    """Answer with what `answer` makes of the request's body."""

    async def behave(seen: Seen, writer: asyncio.StreamWriter) -> None:
        await answers(answer(seen.json), delay_s=delay_s)(seen, writer)

    return behave


def question(body: Any) -> str:
    """The user's words in a request of either API."""
    items = body.get("messages") or body["input"]
    return next(str(item["content"]) for item in items if item.get("role") == "user")


def echo(body: Any) -> Any:
    """Answer with the question, in the API that was asked."""
    text = question(body)
    if "messages" in body:
        return chat({"role": "assistant", "content": text})
    part = {"type": "output_text", "text": text, "annotations": []}
    message = {"type": "message", "id": "msg_1", "role": "assistant", "content": [part]}
    return {
        "id": "resp_1",
        "object": "response",
        "status": "completed",
        "model": "fake-1",
        "output": [{**message, "status": "completed"}],
        "usage": {"input_tokens": 20, "output_tokens": 5, "total_tokens": 25},
    }
