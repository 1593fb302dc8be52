"""What a process counts, for Prometheus: base units, few labels, nothing that names a rollout.

One `Metrics` per process, handed to what counts; the registry is a value, so two in one test are
trivial. Almost all of it is counted at the seams (metered.py): code that works does not count.
Labels are families: `queue` and `exchange` are `task`, `model`, `retry`, ..., never a full name.
"""

import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from broker.base import Broker
from broker.series import AllSeries, Series, Spread, Value

_WORK_S: Final = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 15, 60, 300, 900, 3600, 14400)
_FAST_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 2.5, 10)
_REWARDS: Final = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


class EndpointFigures(NamedTuple):
    """How one endpoint of a model stands."""

    model: str
    endpoint: str
    """Its URL, secrets masked."""
    up: bool
    limit: int
    in_flight: int
    waiting: int
    requests: int


class Metrics:
    """All metrics of one process, in a registry of their own."""

    def __init__(self, kind: str, version: str) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        series = AllSeries()
        self.gather: Callable[[], None] = series.gather
        """Count what was observed. A scrape does; without any, call it every few seconds."""
        self.registry.register(series)

        def counter(name: str, text: str, *labels: str) -> Series[Value]:
            return series.counter(f"warren_{name}", text, *labels)

        def gauge(name: str, text: str, *labels: str) -> Series[Value]:
            return series.gauge(f"warren_{name}", text, *labels)

        def histogram(
            name: str, text: str, bounds: Sequence[float], *labels: str
        ) -> Series[Spread]:
            return series.histogram(f"warren_{name}", text, bounds, *labels)

        gauge("worker_info", "What this process is; always 1.", "kind", "version").labels(
            kind, version
        ).set(1)
        self.slots = gauge("slots", "Prefetch: deliveries that may be in hand.", "queue")
        self.in_hand = gauge("in_hand", "Deliveries in hand, not yet settled.", "queue")
        self.delivered = counter("amqp_delivered", "Deliveries.", "queue", "redelivered")
        self.settled = counter("amqp_settled", "Ends of deliveries.", "queue", "outcome")
        self.held_s = histogram(
            "work_seconds", "From a delivery to its settling.", _WORK_S, "queue", "outcome"
        )
        self.published = counter(
            "amqp_published", "Confirmed or refused publishes.", "exchange", "outcome"
        )
        self.confirm_s = histogram(
            "amqp_confirm_seconds", "From a publish to its confirm.", _FAST_S, "exchange"
        )
        self.hints = counter("amqp_hints", "Replies sent without confirm.")
        self.told = counter("journal_told", "Replies that the journal's store sent by itself.")
        self.heard = counter("journal_heard", "Replies that came from the journal's store.")
        self.journal_s = histogram(
            "journal_op_seconds", "Operations of the journal.", _FAST_S, "op"
        )
        self.journal_results = counter(
            "journal_results", "What take, begin, finish and keep_first answered.", "op", "result"
        )
        self.journal_errors = counter("journal_errors", "Operations that failed.", "op")
        self.replayed_calls = counter(
            "replayed_calls", "Finished calls that a take found in the journal."
        )
        self.rows = counter("sink_rows", "Rows that became durable.", "status", "error")
        self.reward = histogram("reward", "Rewards of durable rows.", _REWARDS)
        self.tokens = counter("model_tokens", "Tokens of durable rows.", "direction")
        self.last_commit = gauge(
            "sink_last_commit_timestamp_seconds", "Unix time of the last commit."
        )
        self.loop_lag_s = histogram(
            "event_loop_lag_seconds", "How late the event loop runs.", _FAST_S
        )

    def watch(self, broker: Broker) -> None:
        """Export what this broker counts itself, read at each scrape. Once per process."""
        self.registry.register(_Connection(broker))

    def watch_endpoints(self, read: Callable[[], Sequence[EndpointFigures]]) -> None:
        """Export how a gateway's endpoints stand, read at each scrape."""
        self.registry.register(_Endpoints(read))

    def row(
        self,
        *,
        status: str,
        error: str | None,
        reward: float | None,
        prompt_tokens: int,
        generated_tokens: int,
    ) -> None:
        """One row became durable."""
        self.rows.labels(status, error or "").inc()
        if reward is not None:
            self.reward.labels().observe(reward)
        self.tokens.labels("prompt").inc(prompt_tokens)
        self.tokens.labels("generated").inc(generated_tokens)
        self.last_commit.labels().set(time.time())


class _Endpoints(Collector):
    """Reads how endpoints stand."""

    def __init__(self, read: Callable[[], Sequence[EndpointFigures]]) -> None:
        self._read = read

    def collect(self) -> list[GaugeMetricFamily | CounterMetricFamily]:
        labels = ("model", "endpoint")
        requests = CounterMetricFamily(
            "warren_endpoint_requests", "Sent to the endpoint.", labels=labels
        )
        gauges = {
            name: GaugeMetricFamily(f"warren_endpoint_{name}", text, labels=labels)
            for name, text in (
                ("up", "Whether calls are sent there."),
                ("limit", "Requests that it may have in flight now."),
                ("in_flight", "Requests in flight."),
                ("waiting", "Calls that wait for a slot of it."),
            )
        }
        for figures in self._read():
            named = (figures.model, figures.endpoint)
            requests.add_metric(named, figures.requests)
            for name, gauge in gauges.items():
                gauge.add_metric(named, float(getattr(figures, name)))
        return [requests, *gauges.values()]


class _Connection(Collector):
    """Reads what the broker counts itself."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    def collect(self) -> list[CounterMetricFamily]:
        return [
            CounterMetricFamily(
                "warren_amqp_reconnects",
                "How often the connection was restored.",
                value=self._broker.reconnects,
            )
        ]
