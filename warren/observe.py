"""/metrics, /healthz and /readyz of one process, and how late its event loop runs.

Healthy: the event loop answers. Ready: every check passes: the broker is connected, the journal
answers, the worker consumes. A check that raises or takes too long is one that does not pass.
"""

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final

from aiohttp import web
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from broker.base import Broker
from broker.errors import UsageError, WarrenError
from broker.journal.runs import Runs
from broker.metrics import Metrics
from sinks.totals import RowSummary

log = logging.getLogger(__name__)

Check = Callable[[], Awaitable[bool]]

#: A check that takes longer than this says no.
CHECK_S: Final = 2.0
_LAG_EVERY_S: Final = 0.5


@asynccontextmanager
async def serving(
    metrics: Metrics, checks: Mapping[str, Check], *, host: str, port: int
) -> AsyncGenerator[int]:
    """Serve while the context is open; yields the port (0 takes a free one).

    Raises UsageError where the address can't be had.
    """
    app = web.Application()
    app.add_routes(
        [
            web.get("/metrics", _metrics(metrics)),
            web.get("/healthz", _healthz),
            web.get("/readyz", _readyz(checks)),
        ]
    )
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=0.5)
    await runner.setup()
    lag = asyncio.create_task(_measure_lag(metrics))
    try:
        bound = await _listen(runner, host, port)
        log.info("serving metrics", extra={"host": host, "port": bound})
        yield bound
    finally:
        lag.cancel()
        await runner.cleanup()


async def _listen(runner: web.AppRunner, host: str, port: int) -> int:
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as e:
        raise UsageError(
            f"cannot serve metrics on {host}:{port}: {e.strerror}; --metrics-port 0 takes a free"
            " port"
        ) from e
    return int(runner.addresses[0][1])


def _metrics(metrics: Metrics) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def answer(_: web.Request) -> web.Response:
        body = generate_latest(metrics.registry)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    return answer


async def _healthz(_: web.Request) -> web.Response:
    return web.Response(text="ok\n")


def _readyz(checks: Mapping[str, Check]) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def answer(_: web.Request) -> web.Response:
        passed = {name: await _passes(check) for name, check in checks.items()}
        ready = all(passed.values())
        text = json.dumps({"ready": ready, **passed}) + "\n"
        return web.Response(
            text=text, status=200 if ready else 503, content_type="application/json"
        )

    return answer


async def _passes(check: Check) -> bool:
    try:
        async with asyncio.timeout(CHECK_S):
            return await check()
    except (WarrenError, TimeoutError, OSError):
        return False


async def _measure_lag(metrics: Metrics) -> None:
    while True:
        due = time.monotonic() + _LAG_EVERY_S
        await asyncio.sleep(_LAG_EVERY_S)
        metrics.loop_lag_s.labels().observe(max(time.monotonic() - due, 0.0))
        metrics.gather()


def checks_of(broker: Broker, runs: Runs, consuming: asyncio.Event) -> dict[str, Check]:
    """What a worker's readiness is made of."""

    async def connected() -> bool:
        return broker.connected

    async def answers() -> bool:
        await runs.progress("readyz")  # no such run: one round trip that finds nothing
        return True

    async def consumes() -> bool:
        return consuming.is_set()

    return {"broker": connected, "journal": answers, "consuming": consumes}


def count_rows(metrics: Metrics, rows: Sequence[RowSummary]) -> None:
    """Count rows that a sink made durable; `partial(count_rows, metrics)` is its OnCommitted."""
    for row in rows:
        metrics.row(
            status=row.status,
            error=row.error_kind,
            reward=row.reward,
            prompt_tokens=row.prompt_tokens,
            generated_tokens=row.generated_tokens,
        )
