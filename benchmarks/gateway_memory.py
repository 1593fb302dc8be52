"""Resident memory of one gateway process with thousands of calls in flight.

    python -m benchmarks.gateway_memory [CALLS]

2 kB in, 500 tokens with logprobs out, after 8 s: nearly all answers come within a second, which is
the worst case. The embedded broker and journal live in the same process and count too.
"""

import asyncio
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Final

import uvloop

from benchmarks.gateway_cpu import call, stub
from broker import codec
from broker.base import Delivery, Outgoing
from broker.journal.base import Run
from broker.journal.memory import MemoryJournal
from broker.memory import MemoryBroker
from broker.messages import ModelCall, ModelResult, Reply
from broker.serve import serve
from broker.topology import MODEL, inbox, ladder_queues, model_key
from warren.cli import open_files
from workers.model_gateway.config import ModelConfig
from workers.model_gateway.opening import open_gateway

CALLS: Final = 4000
LATENCY_S: Final = 8.0
_MB: Final = 1e6


def resident_mb() -> float:
    """Of this process, now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / _MB


class Owner:
    """Publishes calls and counts their replies."""

    def __init__(self, broker: MemoryBroker, journal: MemoryJournal, calls: int) -> None:
        self._broker = broker
        self._journal = journal
        self._left = calls
        self.answered = asyncio.Event()
        self.failed = 0

    async def publish(self, n: int) -> None:
        rollout = f"run.g/{n}/0"
        taken = await self._journal.take(rollout, "owner")
        assert isinstance(taken, Run)
        packed = codec.encode(call(f"{n} What is the weather? " * 80, rollout, taken.epoch))
        key = model_key("normal", "m")
        await self._broker.publish(Outgoing(MODEL.name, key, packed, codec.kind_of(ModelCall)))

    def on_reply(self, delivery: Delivery) -> None:
        reply = codec.decode(Reply, delivery.body, delivery.kind)
        delivery.ack()
        self.failed += codec.read(ModelResult, reply.result).error is not None
        self._left -= 1
        if not self._left:
            self.answered.set()


async def measure(url: str, calls: int) -> dict[str, float]:
    """Megabytes before, in flight, and at the most, and how many calls failed."""
    broker, journal = MemoryBroker(), MemoryJournal()
    owner = Owner(broker, journal, calls)
    config = ModelConfig(name="m", base_urls=(url,), api="vllm", max_concurrency=calls)
    async with open_gateway({"m": config}, {}, broker, journal, prefetch=calls) as gateway:
        sources = gateway.sources()
        await broker.declare([inbox("owner"), *ladder_queues("model"), *(s.queue for s in sources)])
        stop = asyncio.Event()
        async with (
            broker.consume(inbox("owner").name, 10_000, owner.on_reply),
            asyncio.TaskGroup() as group,
        ):
            group.create_task(serve(broker, sources, stop=stop))
            before = resident_mb()
            for n in range(calls):
                await owner.publish(n)
            (status,) = gateway.endpoints()["m"]
            while status.in_flight < calls:  # the stub answers after LATENCY_S
                await asyncio.sleep(0.05)
                (status,) = gateway.endpoints()["m"]
            in_flight = resident_mb()
            await owner.answered.wait()
            stop.set()
    await broker.close()
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / _MB
    return {"before": before, "in_flight": in_flight, "most": most, "failed": owner.failed}


def main() -> None:
    """Measure in a process of its own, since this one has other things in memory."""
    calls = int(sys.argv[1]) if len(sys.argv) > 1 else CALLS
    open_files()  # the stub's too
    if len(sys.argv) > 2:
        sys.stdout.write(json.dumps(uvloop.run(measure(sys.argv[2], calls))))
        return
    with stub(500, latency="fixed", mean_s=LATENCY_S) as url:
        words = [sys.executable, "-m", "benchmarks.gateway_memory", str(calls), url]
        told = json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE).stdout)
    sys.stdout.write(
        f"{calls} calls in flight: {told['in_flight']:.0f} MB resident, at most"
        f" {told['most']:.0f} MB, {told['before']:.0f} MB before; {told['failed']} failed\n"
    )


if __name__ == "__main__":
    main()
