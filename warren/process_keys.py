"""Where a process finds its servers, what it serves, holds and logs."""

from typing import Final

from warren.key import SECONDS, Key, boolean, integer, one_of, text, url

PROCESS: Final[tuple[Key, ...]] = (
    Key(
        name="broker",
        help="RabbitMQ to use; without it everything runs in this process",
        parse=url("amqp", "amqps"),
        toml="broker",
        metavar="URL",
        secret=True,
    ),
    Key(
        name="redis",
        help="Redis that holds the journal; without it a SQLite file beside the output",
        parse=url("redis", "rediss", "unix"),
        toml="redis",
        metavar="URL",
        secret=True,
    ),
    Key(
        name="topology",
        help="`declare` what is used, or find it declared (`external`, for least privilege)",
        parse=one_of("declare", "external"),
        default="declare",
        toml="topology",
        metavar="HOW",
    ),
    Key(
        name="environments",
        flags=("--env",),
        help="environment to serve; repeat for more (default: all that are known)",
        parse=text,
        default=(),
        toml="environments",
        metavar="ENV",
        many=True,
    ),
    Key(
        name="prefetch",
        help="deliveries to have in hand at once",
        parse=integer(1, 65535),
        metavar="N",
    ),
    Key(
        name="format",
        help="of a sink's parts, jsonl.zst or parquet (default: as OUTPUT/<run>/ has them;"
        " in a new one jsonl.zst)",
        parse=one_of("jsonl.zst", "parquet"),
        toml="sink.format",
        metavar="FORMAT",
    ),
    Key(
        name="metrics_host",
        help="address that /metrics, /healthz and /readyz are served on",
        parse=text,
        default="127.0.0.1",
        toml="metrics.host",
        metavar="HOST",
    ),
    Key(
        name="metrics_port",
        help="their port; 0 takes a free one and logs it",
        parse=integer(0, 65535),
        toml="metrics.port",
        metavar="PORT",
    ),
    Key(
        name="renew_after",
        help="seconds after which a held delivery is moved to the worker's own queue",
        parse=SECONDS,
        default=600.0,
        toml="worker.renew_after_s",
        metavar="SECONDS",
    ),
    Key(
        name="log_json",
        help="log as JSON lines",
        parse=boolean,
        default=False,
        toml="log.json",
        switch=True,
    ),
    Key(
        name="log_level",
        help="debug, info, warning or error",
        parse=one_of("debug", "info", "warning", "error"),
        toml="log.level",
        metavar="LEVEL",
    ),
    Key(
        name="unsafe_no_sandbox",
        help="run model-written code with all your rights: only for code that you trust",
        parse=boolean,
        default=False,
        switch=True,
    ),
    Key(name="debug", help="", parse=boolean, default=False, hidden=True, switch=True),
    Key(name="crashpoint", help="", parse=text, hidden=True),
    Key(name="block_limit", help="", parse=SECONDS, default=30.0, hidden=True),
)

#: Work in hand per worker kind where nothing else is said; agents wait, so they hold many.
PREFETCH: Final = {"agent": 64, "tool": 64, "model": 256, "verifier": 64}
PREFETCH_KEYS: Final[tuple[Key, ...]] = tuple(
    Key(
        name=f"prefetch_{kind}",
        help=f"prefetch of {kind} workers",
        parse=integer(1, 65535),
        default=default,
        toml=f"prefetch.{kind}",
        metavar="N",
    )
    for kind, default in PREFETCH.items()
)
