"""The two sinks there are: a collector's, for its own run, and the standing one, for all others."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from broker.base import Broker
from broker.journal.base import Journal
from broker.journal.runs import RunProgress, Runs
from broker.serve import serve
from broker.topology import SINK_SHARDS, kept_queue, run_results_queue, sink_queue
from sinks.base import Output
from sinks.compaction import end_merges
from sinks.dead_letters import dead_letter_source
from sinks.part_formats import PartFormat
from sinks.parts import OtherGeneration, PartFiles
from sinks.worker import PROBE_S, RECONCILE_S, Batching, OnCommitted, Place, SinkWorker


async def collect_into(
    output: Output,
    broker: Broker,
    journal: Journal,
    runs: Runs,
    *,
    run: str,
    generation: str,
    stop: asyncio.Event,
    batching: Batching | None = None,
    on_committed: OnCommitted | None = None,
    reconcile_s: float = RECONCILE_S,
    probe_s: tuple[float, float] = PROBE_S,
) -> None:
    """Write the results that one run's collector gets until `stop`; then close the output.

    Rows that are in the output already are marked in the run's record first. Raises as
    `SinkWorker.run`.
    """
    ours = Place(run, generation, "0")
    worker = SinkWorker(
        broker,
        journal,
        runs,
        lambda place: output if place == ours else None,
        batching=batching,
        on_committed=on_committed,
        reconcile_s=reconcile_s,
        probe_s=probe_s,
    )
    queues = [(run_results_queue("collect", run), ours.shard)]
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(settle_dead_letters(broker, journal, stop=stop))
            await worker.run(queues, stop, adopt=[ours])
    finally:
        output.close()


async def write_all_runs(
    root: Path,
    broker: Broker,
    journal: Journal,
    runs: Runs,
    *,
    stop: asyncio.Event,
    shards: Sequence[int] = range(SINK_SHARDS),
    batching: Batching | None = None,
    format_: PartFormat | None = None,
    reconcile_s: float = RECONCILE_S,
    probe_s: tuple[float, float] = PROBE_S,
    on_committed: OnCommitted | None = None,
) -> None:
    """Write every run's results into ROOT/<run>/ until `stop`. Raises as `SinkWorker.run`.

    `format_` of parts; None: as each directory has them, in new ones jsonl.zst.
    """

    def open_parts(place: Place) -> PartFiles:
        return _open_parts(root, place, format_)

    def find(unfinished: Sequence[RunProgress]) -> list[Place]:
        there = [p.info for p in unfinished if (root / p.info.run).is_dir()]
        return [Place(i.run, i.generation, str(shard)) for i in there for shard in shards]

    worker = SinkWorker(
        broker,
        journal,
        runs,
        open_parts,
        batching=batching,
        on_committed=on_committed,
        find_outputs=find,
        reconcile_s=reconcile_s,
        probe_s=probe_s,
    )
    await asyncio.to_thread(end_merges, root)
    async with asyncio.TaskGroup() as group:
        group.create_task(settle_dead_letters(broker, journal, stop=stop))
        await worker.run([(sink_queue(shard), str(shard)) for shard in shards], stop)


async def settle_dead_letters(broker: Broker, journal: Journal, *, stop: asyncio.Event) -> None:
    """What every sink process does besides: account for what nobody could handle."""
    await broker.declare([kept_queue()])
    await serve(broker, [dead_letter_source(broker, journal)], stop=stop)


def _open_parts(root: Path, place: Place, format_: PartFormat | None) -> PartFiles:
    run, generation, shard = place
    try:
        return PartFiles(root / run, shard, run=run, generation=generation, format_=format_)
    except OtherGeneration:  # the run's output was deleted elsewhere, but not here: keep them apart
        aside = root / f"{run}.{generation}"
        return PartFiles(aside, shard, run=run, generation=generation, format_=format_)
