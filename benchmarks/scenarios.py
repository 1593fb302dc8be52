"""What is measured: each scenario is a line of the table in README.md."""

from dataclasses import dataclass, field, replace
from typing import Final, Literal

from benchmarks.stub import StubOptions

Transport = Literal["embedded", "rabbitmq"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One run of `warren collect`, with the workers that it needs."""

    name: str
    transport: Transport
    rollouts: int = 2000
    """By default; `--full` measures `full`."""
    full: int = 10_000
    concurrency: int = 128
    stub: StubOptions = field(default_factory=StubOptions)
    processes: int = 1
    """Of each kind of worker, over RabbitMQ."""

    @property
    def edge_calls(self) -> int:
        """How many model calls at either end are made while slots begin together, or run empty."""
        return self.concurrency * self.stub.steps


def _both(name: str, **fields: object) -> list[Scenario]:
    return [
        Scenario(name=f"{transport}-{name}", transport=transport, **fields)  # type: ignore[arg-type]
        for transport in ("embedded", "rabbitmq")
    ]


_ONE_S: Final = StubOptions(latency="lognormal", mean_s=1.0)
_TEN_S: Final = StubOptions(latency="lognormal", mean_s=10.0)
_MINUTE: Final = StubOptions(latency="lognormal", mean_s=60.0)

SCENARIOS: Final = {
    scenario.name: scenario
    for scenario in (
        *_both("plain"),
        *_both("3calls", stub=StubOptions(steps=3)),
        *_both("tokens", rollouts=300, full=2000, stub=StubOptions(steps=3, tokens=12_000)),
        *_both("50steps", rollouts=100, full=1000, stub=StubOptions(steps=50)),
        *_both("64", rollouts=1000, full=2000, concurrency=64, stub=_ONE_S),
        *_both("latency", rollouts=4000, full=16_000, concurrency=1000, stub=_ONE_S),
        *_both("halfload", rollouts=6000, concurrency=480, stub=_ONE_S),
        *_both("4000", rollouts=12_000, full=16_000, concurrency=4000, stub=_TEN_S),
        *_both("16000", rollouts=48_000, full=64_000, concurrency=16_000, stub=_MINUTE),
        *_both("100k", rollouts=20_000, full=100_000),
        *(Scenario(name=f"rabbitmq-plain-x{n}", transport="rabbitmq", processes=n) for n in (2, 4)),
    )
}
#: What `make bench` runs: a few minutes.
QUICK: Final = (
    "embedded-plain",
    "rabbitmq-plain",
    "embedded-tokens",
    "rabbitmq-tokens",
    "rabbitmq-50steps",
    "rabbitmq-latency",
    "rabbitmq-halfload",
)


def chosen(names: list[str], *, full: bool) -> list[Scenario]:
    """The scenarios of these names (all of QUICK without any). Raises KeyError."""
    scenarios = [SCENARIOS[name] for name in names or (SCENARIOS if full else QUICK)]
    return [replace(s, rollouts=s.full) for s in scenarios] if full else scenarios
