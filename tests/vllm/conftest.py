"""A real vLLM on this machine's CPU, for `make test-vllm` only: it needs a venv of its own.

WARREN_TEST_VLLM names that venv. One server runs for all tests; it takes a minute to start.
"""

import os
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.ports import free_port

VENV = os.environ.get("WARREN_TEST_VLLM", "")
collect_ignore_glob = [] if VENV else ["test_*.py"]

START_S = 1500.0
_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_SERVER_DEV_MODE": "1",
}
_FLAGS = (
    *("--served-model-name", "tiny", "--host", "127.0.0.1", "--dtype", "float32"),
    *("--max-model-len", "2048", "--max-num-seqs", "16", "--max-num-batched-tokens", "32768"),
    *("--enforce-eager", "--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
    *("--enable-scale-out", "--enable-prompt-tokens-details", "--scheduling-policy", "priority"),
)


@dataclass(frozen=True, slots=True)
class Engine:
    """A vLLM that serves the tiny model."""

    url: str
    weights: Path
    """Folder with the model `tiny`, and versions of it that are noise: `1`, `2`."""


def python(*words: object) -> str:
    """Run this with the vLLM venv's Python; its output."""
    done = subprocess.run(
        [f"{VENV}/bin/python", *map(str, words)],
        env={**os.environ, **_ENVIRONMENT},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model and two other versions of its weights; WARREN_TEST_VLLM_WEIGHTS keeps them."""
    kept = os.environ.get("WARREN_TEST_VLLM_WEIGHTS")
    folder = Path(kept) if kept else tmp_path_factory.mktemp("weights")
    script = Path(__file__).with_name("tiny_model.py")
    for name, seed in (("tiny", ()), ("1", (1,)), ("2", (2,))):
        if not (folder / name / "model.safetensors").exists():
            python(script, folder / name, *seed)
    return folder


@pytest.fixture(scope="session")
def engine(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """The engine that all tests share; WARREN_TEST_VLLM_URL uses one that runs already."""
    if url := os.environ.get("WARREN_TEST_VLLM_URL"):
        yield Engine(url, weights)
        return
    with serving(weights, tmp_path_factory.mktemp("engine")) as url:
        yield Engine(url, weights)


@contextmanager
def serving(weights: Path, folder: Path) -> Iterator[str]:
    """An engine's URL, while the context is open."""
    port = free_port()
    log = folder / "vllm.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [f"{VENV}/bin/vllm", "serve", str(weights / "tiny"), "--port", str(port), *_FLAGS],
            env={**os.environ, **_ENVIRONMENT},
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        _until_healthy(port, process, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(60)


def _until_healthy(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_S
    while not _healthy(port):
        said = log.read_text(encoding="utf-8", errors="replace")[-4000:]
        assert process.poll() is None, said
        assert time.monotonic() < deadline, said
        time.sleep(0.5)


def _healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
