"""CPU of the gateway per model call, without broker and journal.

    python -m benchmarks.gateway_cpu

2 kB in, 1 kB out, 64 calls in flight; the stub is a process of its own. The least of several
rounds is what counts, since other processes can only add; rounds of the kinds of call take turns.
"""

import asyncio
import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

import uvloop

from broker import codec
from broker.masking import Secret
from broker.messages import ModelCall
from tests.support.ports import free_port
from workers.model_gateway.config import Azure, ModelConfig
from workers.model_gateway.gateway import request_of
from workers.model_gateway.opening import endpoints
from workers.model_gateway.pool import EndpointPool
from workers.model_gateway.remarks import Remarks

ROUNDS: Final = 12
CALLS: Final = 500
IN_FLIGHT: Final = 64

#: Kinds of call: generated tokens with ids and logprobs, and how the server is spoken to.
KINDS: Final[Mapping[str, tuple[int, Mapping[str, Any]]]] = {
    "vLLM, 500 tokens with logprobs": (500, {"api": "vllm"}),
    "vLLM, no tokens": (0, {"api": "vllm"}),
    "compatible server": (0, {"api": "chat"}),
    "openai SDK (Azure)": (0, {"azure": Azure(api_version="1"), "api_key": Secret("k")}),
}


def call(text: str, rollout: str = "run.g/0/0", epoch: str = "e") -> ModelCall:
    """One call, as it comes off the wire."""
    return ModelCall(
        rollout=rollout,
        epoch=epoch,
        path="0",
        carrier="c",
        request_hash=b"h",
        held=0,
        reply_to="owner",
        deadline=time.time() + 600,
        run="run",
        environment="env",
        model="m",
        input=(codec.pack({"role": "user", "content": text}),),
        options=codec.pack({"temperature": 1.0}),
        sticky=rollout,
    )


async def one_round(config: ModelConfig) -> float:
    """Microseconds of CPU per call."""
    body, kind = codec.encode(call("What is the weather? " * 100)), codec.kind_of(ModelCall)
    remarks = Remarks()
    async with EndpointPool.open(endpoints(config)) as pool:

        async def ask(count: int) -> None:
            for _ in range(count):
                request = request_of(codec.decode(ModelCall, body, kind), config, remarks)
                codec.pack(await pool.generate(request))

        async def ask_all(count: int) -> None:
            async with asyncio.TaskGroup() as group:
                for _ in range(IN_FLIGHT):
                    group.create_task(ask(count))

        await ask_all(1)  # connections are made once
        began = time.process_time()
        await ask_all(CALLS // IN_FLIGHT)
        return (time.process_time() - began) / (CALLS // IN_FLIGHT * IN_FLIGHT) * 1e6


@contextlib.contextmanager
def stub(tokens: int, **more: object) -> Iterator[str]:
    """A stub that answers with so many tokens; its URL."""
    port = free_port()
    options = json.dumps({"steps": 1, "tokens": tokens, "prompt_tokens": 500, **more})
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.stub", str(port), options], stdout=subprocess.DEVNULL
    )
    try:
        time.sleep(2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    """Measure and say it."""
    rounds: dict[str, list[float]] = {name: [] for name in KINDS}
    with stub(500) as telling, stub(0) as plain:
        for _ in range(ROUNDS):
            for name, (tokens, fields) in KINDS.items():
                urls = (telling if tokens else plain,)
                config = ModelConfig(name="m", base_urls=urls, **fields)
                rounds[name].append(uvloop.run(one_round(config)))
    for name, measured in rounds.items():
        median = statistics.median(measured)
        sys.stdout.write(f"{name}: least {min(measured):.0f} us of CPU, median {median:.0f}\n")


if __name__ == "__main__":
    main()
