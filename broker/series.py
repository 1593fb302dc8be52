"""Counters, gauges and histograms that cost a dictionary look-up and an addition.

prometheus-client's own take a lock per change, which is 20 us of CPU per publish here. These are
changed on the event loop only, so they need none; the client formats them when it is asked.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector


class Value:
    """A counter or a gauge of one set of labels."""

    __slots__ = ("now",)

    def __init__(self) -> None:
        self.now = 0.0

    def inc(self, amount: float = 1.0) -> None:
        self.now += amount

    def dec(self, amount: float = 1.0) -> None:
        self.now -= amount

    def set(self, value: float) -> None:
        self.now = value


class Spread:
    """A histogram of one set of labels.

    A value is only noted when it is observed; `gather` counts all that are, in their order. To look
    for the bucket of each alone was the largest part of what metering cost.
    """

    __slots__ = ("_below", "_bounds", "_noted", "_total", "observe")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = (*bounds, math.inf)
        self._below = [0] * len(self._bounds)
        """How many were at most as large as each bound."""
        self._total = 0.0
        self._noted: list[float] = []
        self.observe: Callable[[float], None] = self._noted.append
        """Note a value, which is a number."""

    def gather(self) -> None:
        """Count what is noted: now and then, so that it stays little."""
        noted = self._noted
        if noted:
            noted.sort()
            self._total += sum(noted)
            for n, bound in enumerate(self._bounds):
                self._below[n] += bisect_right(noted, bound)
            noted.clear()

    def buckets(self) -> tuple[list[tuple[str, float]], float]:
        """As Prometheus wants them, each including the smaller ones; and the sum of all values."""
        self.gather()
        names = [*(repr(float(bound)) for bound in self._bounds[:-1]), "+Inf"]
        return list(zip(names, map(float, self._below), strict=True)), self._total


S = TypeVar("S", Value, Spread)
Family = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily


class Series(Generic[S]):
    """One metric with all its label values."""

    def __init__(
        self, make: Callable[[], S], family: Callable[[], Family], *, labelled: bool
    ) -> None:
        self._make: Callable[[], S] = make
        self._family = family
        self._children: dict[tuple[str, ...], S] = {}
        if not labelled:
            self.labels()  # shown as 0 before anything happens

    def labels(self, *values: str) -> S:
        """The one with these label values, in the order of the label names."""
        child = self._children.get(values)
        if child is None:
            child = self._children[values] = self._make()
        return child

    def gather(self) -> None:
        """Count what is noted (Spread.gather)."""
        for child in self._children.values():
            if isinstance(child, Spread):
                child.gather()

    def metric(self) -> Metric:
        """As it stands now."""
        family = self._family()
        for values, child in self._children.items():
            if isinstance(child, Value):
                assert not isinstance(family, HistogramMetricFamily)
                family.add_metric(values, child.now)
            else:
                assert isinstance(family, HistogramMetricFamily)
                family.add_metric(values, *child.buckets())
        return family


class AllSeries(Collector):
    """Makes series and shows them all at a scrape."""

    def __init__(self) -> None:
        self._series: list[Series[Value] | Series[Spread]] = []

    def counter(self, name: str, text: str, *labels: str) -> Series[Value]:
        """Only grows; `_total` is added to its name."""
        made = Series(
            Value, lambda: CounterMetricFamily(name, text, labels=labels), labelled=bool(labels)
        )
        self._series.append(made)
        return made

    def gauge(self, name: str, text: str, *labels: str) -> Series[Value]:
        """Goes up and down."""
        made = Series(
            Value, lambda: GaugeMetricFamily(name, text, labels=labels), labelled=bool(labels)
        )
        self._series.append(made)
        return made

    def histogram(
        self, name: str, text: str, bounds: Sequence[float], *labels: str
    ) -> Series[Spread]:
        """How values are spread over buckets with these upper bounds."""
        made = Series(
            lambda: Spread(bounds),
            lambda: HistogramMetricFamily(name, text, labels=labels),
            labelled=bool(labels),
        )
        self._series.append(made)
        return made

    def gather(self) -> None:
        """Count what is noted (Spread.gather)."""
        for series in self._series:
            series.gather()

    def collect(self) -> Iterator[Metric]:
        return (series.metric() for series in self._series)
