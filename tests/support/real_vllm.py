"""A real vLLM for tests: how it is started, asked, and what a forward pass says to its answers.

WARREN_TEST_VLLM names a venv that has it (`make test-vllm`).
"""

import importlib
import os
import subprocess
import time
import urllib.request
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from broker.messages import ModelResult, Tokens
from tests.support.gateway import config
from tests.support.ports import free_port
from workers.model_gateway.config import ModelConfig
from workers.spec import Item

VENV = os.environ.get("WARREN_TEST_VLLM", "")
START_S = 1500.0
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_SERVER_DEV_MODE": "1",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
}
ENGINE = (
    *("--dtype", "float32", "--max-model-len", "2048", "--max-num-seqs", "16"),
    *("--max-num-batched-tokens", "32768", "--enforce-eager", "--tool-call-parser", "hermes"),
)
_FLAGS = (
    *("--served-model-name", "tiny", "--host", "127.0.0.1", "--enable-auto-tool-choice"),
    *("--enable-scale-out", "--enable-prompt-tokens-details", "--scheduling-policy", "priority"),
    *ENGINE,
)


GREEDY = {"temperature": 0.0, "max_output_tokens": 64}


def asked(text: str) -> list[Item]:
    return [{"role": "user", "content": text}]


def ids(result: ModelResult) -> tuple[list[int], list[int], list[float]]:
    tokens = result.tokens
    assert isinstance(tokens, Tokens), result
    return (
        array("i", tokens.prompt_ids).tolist(),
        array("i", tokens.generated_ids).tolist(),
        array("f", tokens.logprobs).tolist(),
    )


def forward(weights: Path, samples: Sequence[tuple[list[int], list[int]]]) -> list[list[float]]:
    """The same tokens' logprobs by Hugging Face. In this process: torch takes long to import."""
    torch: Any = importlib.import_module("torch")  # not where mypy looks
    transformers: Any = importlib.import_module("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(weights, dtype=torch.float32).eval()
    found = []
    for prompt, generated in samples:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + generated])).logits[0]
        logprobs = logits.log_softmax(-1)[len(prompt) - 1 : -1]
        found.append([at[token].item() for at, token in zip(logprobs, generated, strict=True)])
    return found


def python(*words: object) -> None:
    """Run this with the vLLM venv's Python."""
    done = subprocess.run(
        [f"{VENV}/bin/python", *map(str, words)],
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def model_at(*urls: str, **fields: object) -> ModelConfig:
    """Model `m`, which the engine calls `tiny`."""
    known = {"api": "vllm", "served_name": "tiny", "try_timeout_s": 250.0, "max_concurrency": 8}
    return config(*urls, **(known | fields))


@contextmanager
def serving(model: Path, folder: Path, *flags: str) -> Iterator[str]:
    """An engine's URL, while the context is open."""
    with started(model, folder, *flags) as (url, process, log):
        until_healthy(url, process, log)
        yield url


@contextmanager
def started(
    model: Path, folder: Path, *flags: str, port: int | None = None
) -> Iterator[tuple[str, "subprocess.Popen[bytes]", Path]]:
    """An engine that begins to start; it is ended with the context."""
    port = port or free_port()
    log = folder / f"vllm-{port}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [f"{VENV}/bin/vllm", "serve", str(model), "--port", str(port), *_FLAGS, *flags],
            env={**os.environ, **ENVIRONMENT},
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        yield f"http://127.0.0.1:{port}/v1", process, log
    finally:
        process.terminate()
        process.wait(60)


def until_healthy(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Wait until it answers; what it said where it ended."""
    deadline = time.monotonic() + START_S
    while not _healthy(url):
        said = log.read_text(encoding="utf-8", errors="replace")[-4000:]
        assert process.poll() is None, said
        assert time.monotonic() < deadline, said
        time.sleep(0.5)


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(url.removesuffix("/v1") + "/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
