"""The sink worker: results come in, batches become durable, only then is anything acknowledged.

    delivery -> batch (rows, bytes or `linger_s`) -> Output.commit -> Runs.mark -> Journal.committed
             -> every handler of the batch returns Ack

Rows are made, written and fsynced in one thread, so the event loop never waits for the disk. On a
full disk the worker stops consuming, which gives everything back once, and probes until there is
room. A broken disk ends the process. The outputs are the authority: marks and totals in the run's
record are rebuilt from them when an output is opened and when the record has lost some.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple, TypeVar

from broker.base import Broker, Delivery
from broker.crashpoints import crash_at
from broker.errors import Undecodable
from broker.journal.base import Journal
from broker.journal.patience import patiently
from broker.journal.runs import RunProgress, Runs
from broker.messages import Result
from broker.names import is_name
from broker.results import read_result
from broker.serve import Ack, Outcome, Source, serve
from broker.topology import QueueSpec
from sinks.base import Output, OutputFull
from sinks.files import has_room
from sinks.rows import row_for
from sinks.totals import RowSummary

log = logging.getLogger(__name__)
T = TypeVar("T")

#: Marks are written in pieces of this many rows when they are rebuilt.
_MARK_ROWS: Final = 10_000
#: How often an open output is compared with its run's record.
RECONCILE_S: Final = 15.0
#: While a disk is full, room is looked for this often, first and later.
PROBE_S: Final = (1.0, 30.0)


class Place(NamedTuple):
    """Where a result belongs."""

    run: str
    generation: str
    shard: str


OpenOutput = Callable[[Place], Output | None]
"""Blocking. None: nobody wants this result any more (another generation); it is dropped."""
FindOutputs = Callable[[Sequence[RunProgress]], Sequence[Place]]
"""Blocking. Which outputs of these unfinished runs are on disk: their rows are marked again."""
OnCommitted = Callable[[Sequence[RowSummary]], None]
"""Told, on the event loop, of rows that became durable. `Output.totals` is the truth."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batching:
    """When a batch is committed: at the first of these."""

    rows: int = 256
    size_bytes: int = 8 * 1024 * 1024
    """Of packed trajectories; as rows they are up to four times that."""
    linger_s: float = 0.2
    """After the last commit: a result that comes alone waits for no others."""


class _Batch:
    """Results that become durable together."""

    def __init__(self) -> None:
        self.results: list[Result] = []
        self.size_bytes = 0
        self.waiting: list[asyncio.Future[None]] = []
        """One per result: a cancelled delivery is given back, its neighbours go on."""

    def is_durable(self) -> None:
        """Let every delivery be acknowledged."""
        for each in self.waiting:
            if not each.done():
                each.set_result(None)


class _Writer:
    """One open output: gathers results and commits them batch by batch."""

    def __init__(self, sink: "SinkWorker", place: Place, output: Output) -> None:
        self.output = output
        self.used_at = time.monotonic()
        self._sink = sink
        self._place = place
        self._batch = _Batch()
        self._arrived = asyncio.Event()
        self._enough = asyncio.Event()
        self._rest_until = 0.0
        self._busy = False

    @property
    def idle(self) -> bool:
        """Whether nothing waits for it."""
        return not self._busy and not self._batch.results

    async def add(self, result: Result) -> None:
        """Return once the result has a durable row, is marked, and its journal is a tombstone."""
        self.used_at = time.monotonic()
        batch, limits = self._batch, self._sink.batching
        batch.results.append(result)
        batch.size_bytes += len(result.trajectory)
        self._arrived.set()
        if len(batch.results) >= limits.rows or batch.size_bytes >= limits.size_bytes:
            self._enough.set()
        durable: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        batch.waiting.append(durable)
        await durable

    async def run(self) -> None:
        """Mark what is there, then commit batches for ever. Raises OutputFull, OutputBroken."""
        await self._rebuild()
        while True:
            if not await _set_within(self._arrived, self._sink.reconcile_s):
                await self._reconcile()
                await self._sink.in_thread(self.output.tidy)
                continue
            await _set_within(self._enough, max(self._rest_until - time.monotonic(), 0.0))
            batch, self._batch = self._batch, _Batch()
            self._arrived.clear()
            self._enough.clear()
            self._busy = True
            await self._commit(batch.results)
            self._busy = False
            self._rest_until = time.monotonic() + self._sink.batching.linger_s
            batch.is_durable()
            await self._sink.in_thread(self.output.tidy)

    async def _commit(self, results: Sequence[Result]) -> None:
        try:
            written = await self._sink.in_thread(
                lambda: self.output.commit([row_for(result) for result in results])
            )
        except OutputFull as e:
            self._sink.tell(e.written)
            raise
        crash_at("sink.before_mark")
        await self._mark([(r.task_index, r.repeat) for r in results])
        keys = [result.journal_key for result in results]
        await patiently(lambda: self._sink.journal.committed(keys))
        crash_at("sink.before_ack")
        self._sink.tell(written)

    async def _rebuild(self) -> None:
        """Tell the run's record everything that this output holds."""
        piece: list[tuple[int, int]] = []
        for id_ in self.output.ids:
            piece.append(id_)
            if len(piece) == _MARK_ROWS:
                await self._mark(piece)
                piece = []
        await self._mark(piece)

    async def _reconcile(self) -> None:
        """Rebuild where the record has gone or knows less than the output does."""
        run, generation, _ = self._place
        for repeat in self.output.ids.repeats():
            known = await patiently(partial(self._sink.runs.committed, run, generation, repeat))
            if not covers(known, self.output.ids.bitmap(repeat)):
                log.warning("run record has lost rows", extra={"run": run})
                return await self._rebuild()

    async def _mark(self, ids: Sequence[tuple[int, int]]) -> None:
        totals = self.output.totals
        await patiently(lambda: self._sink.runs.mark(*self._place, ids, totals))


class SinkWorker:
    """Consumes result queues and writes each run's rows where `open_output` says."""

    def __init__(
        self,
        broker: Broker,
        journal: Journal,
        runs: Runs,
        open_output: OpenOutput,
        *,
        batching: Batching | None = None,
        on_committed: OnCommitted | None = None,
        find_outputs: FindOutputs | None = None,
        idle_close_s: float = 300.0,
        reconcile_s: float = RECONCILE_S,
        probe_s: tuple[float, float] = PROBE_S,
    ) -> None:
        self.journal = journal
        self.runs = runs
        self.batching = batching or Batching()
        self.reconcile_s = reconcile_s
        self.tell = on_committed or (lambda rows: None)
        self._broker = broker
        self._open_output = open_output
        self._find_outputs = find_outputs
        self._idle_close_s = idle_close_s
        self._probe_s = probe_s
        self._thread = ThreadPoolExecutor(1, "sink")
        self._outputs: dict[Place, Output | None] = {}

    async def run(
        self,
        queues: Sequence[tuple[QueueSpec, str]],
        stop: asyncio.Event,
        *,
        adopt: Sequence[Place] = (),
    ) -> None:
        """Consume these queues, each with its shard's name, until `stop`; then close the outputs.

        `adopt`: outputs to open at once, so that their rows are marked before any result comes.
        Raises (in groups) OutputBroken, OutputRefused, BrokerError: crash and be restarted.
        """
        try:
            while not stop.is_set():
                serving = _Serving(self, adopt)
                full = await serving.run(self._broker, queues, stop)
                if full is not None:
                    await self._wait_for_room(full, stop)
        finally:
            closing = self._thread.submit(self._close_all)  # behind a commit in progress
            try:
                await asyncio.wrap_future(closing)
            finally:
                self._thread.shutdown(wait=True)

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Run blocking work in the one thread that touches outputs."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def output(self, place: Place) -> Output | None:
        """Open the output of a place, or None where its results are not wanted any more."""
        if place not in self._outputs:
            known = await patiently(lambda: self.runs.progress(place.run))
            if known is not None and known.info.generation != place.generation:
                self._outputs[place] = None
            else:
                self._outputs[place] = await self.in_thread(lambda: self._open_output(place))
        return self._outputs[place]

    async def unfinished(self) -> Sequence[Place]:
        """Outputs on disk of runs that still miss rows."""
        if self._find_outputs is None:
            return ()
        find = self._find_outputs
        runs = [run for run in await patiently(self.runs.list) if run.committed < run.published]
        return await self.in_thread(lambda: find(runs)) if runs else ()

    def is_idle(self, writer: _Writer) -> bool:
        """Whether nothing has come for it lately."""
        return writer.idle and time.monotonic() - writer.used_at >= self._idle_close_s

    async def close(self, place: Place) -> None:
        """Close an output; it is opened again when something comes for it."""
        output = self._outputs.pop(place)
        if output is not None:
            await self.in_thread(output.close)

    def _close_all(self) -> None:
        for output in self._outputs.values():
            if output is not None:
                output.close()

    async def _wait_for_room(self, output: Output, stop: asyncio.Event) -> None:
        path = output.paths[0]
        delay_s, longest_s = self._probe_s
        while not stop.is_set():
            log.error("output is full: waiting for room", extra={"path": str(path)})
            if await _set_within(stop, delay_s):
                return
            if await self.in_thread(lambda: has_room(path, self.batching.size_bytes)):
                return log.warning("output has room again", extra={"path": str(path)})
            delay_s = min(delay_s * 2, longest_s)


class _Serving:
    """One round of consuming: from the start, or from when there was room, until stop or full."""

    def __init__(self, sink: SinkWorker, adopt: Sequence[Place]) -> None:
        self._sink = sink
        self._adopt = adopt
        self._over = asyncio.Event()
        self._full: Output | None = None
        self._writers: dict[Place, asyncio.Task[_Writer | None]] = {}
        self._running: dict[Place, asyncio.Task[None]] = {}

    async def run(
        self, broker: Broker, queues: Sequence[tuple[QueueSpec, str]], stop: asyncio.Event
    ) -> Output | None:
        """Serve until `stop`, or until an output is full: that one is returned."""
        async with asyncio.TaskGroup() as self._group:
            helpers = [
                self._group.create_task(self._follow(stop)),
                self._group.create_task(self._keep_house()),
            ]
            for place in self._adopt:
                await self._writer(place)
            sources = [self._source(queue, shard) for queue, shard in queues]
            await serve(broker, sources, stop=self._over)
            for task in (*helpers, *self._writers.values(), *self._running.values()):
                task.cancel()
        return self._full

    def _source(self, queue: QueueSpec, shard: str) -> Source:
        async def handle(delivery: Delivery) -> Outcome:
            result = read_result(delivery.body, delivery.kind)
            check(result)
            place = Place(result.run, result.generation, shard)
            writer = await self._writer(place)
            if writer is None:
                log.warning("result of another generation", extra={"rollout": result.rollout_id})
            else:
                await writer.add(result)
            return Ack()

        return Source(queue, 2 * self._sink.batching.rows, handle, stage=None)

    async def _writer(self, place: Place) -> _Writer | None:
        opening = self._writers.get(place)
        if opening is None:
            opening = self._writers[place] = self._group.create_task(self._open(place))
        if not opening.done():
            await asyncio.wait([opening])
        if opening.cancelled() or opening.exception() is not None:
            await asyncio.Future()  # the group is ending; this delivery must not be called dead
        return opening.result()

    async def _open(self, place: Place) -> _Writer | None:
        output = await self._sink.output(place)
        if output is None:
            return None
        writer = _Writer(self._sink, place, output)
        self._running[place] = self._group.create_task(self._drive(writer))
        return writer

    async def _drive(self, writer: _Writer) -> None:
        try:
            await writer.run()
        except OutputFull:
            self._full = writer.output
            self._over.set()

    async def _follow(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._over.set()

    async def _keep_house(self) -> None:
        """Mark what the records of unfinished runs may lack; close what is idle."""
        while True:
            for place in await self._sink.unfinished():
                await self._writer(place)
            await asyncio.sleep(self._sink.reconcile_s)
            for place, opened in list(self._writers.items()):
                writer = opened.result() if opened.done() else None
                if writer is not None and place not in self._adopt:
                    await self._close_if_idle(place, writer)

    async def _close_if_idle(self, place: Place, writer: _Writer) -> None:
        if self._sink.is_idle(writer):
            del self._writers[place]
            self._running.pop(place).cancel()
            await self._sink.close(place)


def check(result: Result) -> None:
    """Refuse what can name no row or would name a path. Raises Undecodable."""
    if not is_name(result.run) or not is_name(result.generation):
        raise Undecodable(f"run {result.run!r}, generation {result.generation!r}")
    if result.task_index < 0 or result.repeat < 0:
        raise Undecodable(f"task {result.task_index}, repeat {result.repeat}")


def covers(known: bytes, ours: bytes) -> bool:
    """Whether every bit of `ours` is set in `known` (both most significant bit first)."""
    size = max(len(known), len(ours))
    theirs = int.from_bytes(known.ljust(size, b"\0"), "big")
    return not int.from_bytes(ours.ljust(size, b"\0"), "big") & ~theirs


async def _set_within(event: asyncio.Event, seconds: float) -> bool:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()
