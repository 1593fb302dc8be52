"""A gateway under test: embedded broker and journal around it, and the owner who asks it."""

import asyncio
import contextlib
import itertools
import time
from array import array
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from broker import codec
from broker.base import Delivery, Outgoing
from broker.journal.base import Run
from broker.journal.memory import MemoryJournal
from broker.masking import Secret
from broker.memory import MemoryBroker
from broker.messages import ModelCall, ModelResult, Reply
from broker.serve import serve
from broker.shared.base import Shared
from broker.topology import MODEL, Lane, inbox, ladder_queues, model_key
from workers.model_gateway.config import ModelConfig
from workers.model_gateway.gateway import ModelGateway
from workers.model_gateway.opening import open_gateway
from workers.spec import EnvironmentSpec, Item

INBOX = "agent-test"
KEY = Secret("sk-very-secret-key-1234")
HELLO: tuple[Item, ...] = ({"role": "user", "content": "hello"},)


def config(*urls: str, **fields: Any) -> ModelConfig:
    """Model `m` at these URLs, over Chat Completions unless said otherwise."""
    given: dict[str, Any] = {
        "name": "m",
        "base_urls": urls,
        "api_key": KEY,
        "api": "chat",
        "try_timeout_s": 5.0,
    }
    return ModelConfig(**(given | fields))


class Caller:
    """The owner of all rollouts: publishes calls and waits for their replies."""

    def __init__(self, broker: MemoryBroker, journal: MemoryJournal, gateway: ModelGateway) -> None:
        self.broker = broker
        self.journal = journal
        self.gateway = gateway
        self.others: list[Caller] = []
        """Further gateways beside it."""
        self._waiting: dict[tuple[str, str], asyncio.Future[ModelResult]] = {}
        self._paths = itertools.count()
        self._epochs: dict[str, str] = {}

        self._stop = asyncio.Event()
        self._stopped = asyncio.Event()

    async def serve(self) -> None:
        try:
            await serve(self.broker, self.gateway.sources(), stop=self._stop, grace_s=0.2)
        finally:
            self._stopped.set()

    async def stop(self) -> None:
        """Stop the gateway as SIGTERM does."""
        self._stop.set()
        async with asyncio.timeout(5):
            await self._stopped.wait()

    def on_reply(self, delivery: Delivery) -> None:
        reply = codec.decode(Reply, delivery.body, delivery.kind)
        delivery.ack()
        waiting = self._waiting.pop((reply.rollout, reply.path), None)
        if waiting is not None and reply.kind == "result" and not waiting.done():
            waiting.set_result(codec.read(ModelResult, reply.result))

    async def ask(
        self,
        items: Sequence[Item] = HELLO,
        *,
        model: str = "m",
        tools: Sequence[Item] = (),
        options: Mapping[str, Any] | None = None,
        rollout: str = "run.g/0/0",
        deadline_s: float = 20.0,
        lane: Lane = "normal",
        run: str = "run",
        known: tuple[Sequence[int], int] = ((), 0),
    ) -> ModelResult:
        """Make one model call through the broker; its result."""
        epoch = await self._epoch(rollout)
        path = str(next(self._paths))
        call = ModelCall(
            rollout=rollout,
            epoch=epoch,
            path=path,
            carrier=path,
            request_hash=b"h",
            held=0,
            reply_to=INBOX,
            deadline=time.time() + deadline_s,
            run=run,
            environment="env",
            lane=lane,
            model=model,
            input=tuple(codec.pack(item) for item in items),
            tools=codec.pack(list(tools)) if tools else b"",
            options=codec.pack(options) if options else b"",
            sticky=rollout,
            known_ids=array("i", known[0]).tobytes(),
            known_items=known[1],
        )
        future: asyncio.Future[ModelResult] = asyncio.get_running_loop().create_future()
        self._waiting[rollout, path] = future
        await self.broker.publish(
            Outgoing(
                MODEL.name, model_key(lane, model), codec.encode(call), codec.kind_of(ModelCall)
            )
        )
        async with asyncio.timeout(deadline_s + 5):
            return await future

    async def _epoch(self, rollout: str) -> str:
        if rollout not in self._epochs:
            taken = await self.journal.take(rollout, INBOX)
            assert isinstance(taken, Run)
            self._epochs[rollout] = taken.epoch
        return self._epochs[rollout]


@contextlib.asynccontextmanager
async def serving(
    *models: ModelConfig,
    environments: Sequence[EnvironmentSpec] = (),
    prefetch: int = 256,
    beside: Caller | None = None,
    shared: Shared | None = None,
) -> AsyncIterator[Caller]:
    """A gateway to these models that serves for the length of a test.

    `beside` another one it shares its broker and journal, and leaves replies to it.
    """
    broker = beside.broker.connect() if beside else MemoryBroker()
    journal = beside.journal if beside else MemoryJournal()
    named = {model.name: model for model in models}
    known = {spec.name: spec for spec in environments}
    async with open_gateway(
        named, known, broker, journal, prefetch=prefetch, shared=shared
    ) as gateway:
        caller = Caller(broker, journal, gateway)
        queues = [source.queue for source in gateway.sources()]
        await broker.declare([inbox(INBOX), *ladder_queues("model"), *queues])
        async with contextlib.AsyncExitStack() as stack, asyncio.TaskGroup() as group:
            if beside is None:
                await stack.enter_async_context(
                    broker.consume(inbox(INBOX).name, 1000, caller.on_reply)
                )
            group.create_task(caller.serve())
            try:
                yield caller
            finally:
                await caller.stop()
    await broker.close()


def output(result: ModelResult) -> list[Item]:
    """The items of an answer."""
    items: list[Item] = codec.unpack(result.items)
    return items
