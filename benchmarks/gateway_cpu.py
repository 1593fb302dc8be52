"""CPU of the gateway per vLLM call, without broker and journal: `python -m benchmarks.gateway_cpu`.

2 kB in, 1 kB out, 500 tokens with logprobs, 64 calls in flight; the stub is a process of its own.
The least of several rounds is what counts: other processes can only add.
"""

import asyncio
import json
import subprocess
import sys
import time
from typing import Final

import uvloop

from broker import codec
from broker.messages import ModelCall
from tests.support.ports import free_port
from workers.model_gateway.config import ModelConfig
from workers.model_gateway.gateway import request_of
from workers.model_gateway.opening import endpoints
from workers.model_gateway.pool import EndpointPool

ROUNDS: Final = 5
CALLS: Final = 1000
IN_FLIGHT: Final = 64


def call(n: int) -> ModelCall:
    """One call, as it comes off the wire."""
    text = "What is the weather? " * 100
    return ModelCall(
        rollout=f"run.g/{n}/0",
        epoch="e",
        path="0",
        carrier="c",
        request_hash=b"h",
        held=0,
        reply_to="inbox",
        deadline=time.time() + 600,
        run="run",
        environment="env",
        model="m",
        input=(codec.pack({"role": "user", "content": text}),),
        options=codec.pack({"temperature": 1.0}),
        sticky=f"run/{n}/0",
    )


async def measure(url: str) -> list[float]:
    """Microseconds of CPU per call, of each round."""
    config = ModelConfig(name="m", base_urls=(url,), api="vllm")
    body, kind = codec.encode(call(0)), codec.kind_of(ModelCall)
    rounds = []
    async with EndpointPool.open(endpoints(config)) as pool:

        async def ask(count: int) -> None:
            for _ in range(count):
                request = request_of(codec.decode(ModelCall, body, kind), config)
                codec.pack(await pool.generate(request))

        for _ in range(ROUNDS):
            began = time.process_time()
            async with asyncio.TaskGroup() as group:
                for _ in range(IN_FLIGHT):
                    group.create_task(ask(CALLS // IN_FLIGHT))
            calls = CALLS // IN_FLIGHT * IN_FLIGHT
            rounds.append((time.process_time() - began) / calls * 1e6)
    return rounds


def main() -> None:
    """Measure and say it."""
    port = free_port()
    options = json.dumps({"steps": 1, "tokens": 500, "prompt_tokens": 500})
    stub = subprocess.Popen([sys.executable, "-m", "benchmarks.stub", str(port), options])
    try:
        time.sleep(2)
        rounds = uvloop.run(measure(f"http://127.0.0.1:{port}/v1"))
    finally:
        stub.terminate()
        stub.wait()
    told = ", ".join(f"{each:.0f}" for each in rounds)
    sys.stdout.write(f"least {min(rounds):.0f} us of CPU per call ({told})\n")


if __name__ == "__main__":
    main()
