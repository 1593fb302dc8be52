"""What a run is of, how much of it there is, and when a rollout or the run ends."""

from typing import Final

from warren.key import COUNT, SECONDS, Key, boolean, name, number, one_of, path, text

#: The kinds of queue whose messages may wait for a limited time only, and what follows.
WAITS: Final = {
    "task": "a task may wait for an agent, then it is a failed row",
    "model": "a model call may wait for a gateway, then it has failed",
    "tool": "a tool call may wait for a tool worker, then it has failed",
    "verify": "a rollout may wait for a verifier, then it is a failed row",
}

RUN: Final[tuple[Key, ...]] = (
    Key(
        name="environment",
        flags=("--env",),
        help="environment of the tasks: a name, or path/to/file.py[:name]",
        parse=text,
        metavar="ENV",
    ),
    Key(
        name="run_id",
        flags=("--run-id", "--run"),
        help="the run's name, [a-z0-9_-]{1,64} (default: the run to go on with, or a new one)",
        parse=name,
        metavar="RUN",
    ),
    Key(
        name="repeats",
        help="rollouts per task",
        parse=COUNT,
        default=1,
        toml="collect.repeats",
        metavar="N",
    ),
    Key(name="limit", help="only the first N input lines", parse=COUNT, metavar="N"),
    Key(
        name="concurrency",
        help="rollouts that run at once",
        parse=COUNT,
        default=64,
        toml="collect.concurrency",
        metavar="N",
    ),
    Key(
        name="window",
        help="most uncommitted rollouts at a time",
        parse=COUNT,
        toml="collect.window",
        metavar="N",
    ),
    Key(
        name="workers",
        help="start all workers here (`own`), or use running ones (`external`)",
        parse=one_of("own", "external"),
        default="own",
        toml="collect.workers",
        metavar="WHOSE",
    ),
    Key(
        name="max_steps",
        help="model calls per rollout, then it is truncated",
        parse=COUNT,
        default=50,
        toml="limits.max_steps",
        metavar="N",
    ),
    Key(
        name="timeout",
        help="seconds per rollout, then it is truncated",
        parse=SECONDS,
        default=3600.0,
        toml="limits.timeout_s",
        metavar="SECONDS",
    ),
    Key(
        name="call_timeout",
        help="seconds per model or tool call, waiting included; at most 1500",
        parse=number(0, 1500, above=True),
        default=1200.0,
        toml="limits.call_timeout_s",
        metavar="SECONDS",
    ),
    Key(
        name="max_total_tokens",
        help="prompt and generated tokens per rollout, then it is truncated",
        parse=COUNT,
        toml="limits.max_total_tokens",
        metavar="N",
    ),
    *(
        Key(
            name=f"{kind}_wait",
            help=f"seconds that {what} (default: any time)",
            parse=SECONDS,
            toml=f"limits.{kind}_wait_s",
            metavar="SECONDS",
        )
        for kind, what in WAITS.items()
    ),
    Key(
        name="max_cost",
        help="US dollars for the whole run, then it ends (needs the model's price in warren.toml)",
        parse=number(0, above=True),
        toml="budget.max_cost",
        metavar="USD",
    ),
    Key(
        name="max_tokens",
        help="prompt and generated tokens for the whole run, then it ends",
        parse=COUNT,
        toml="budget.max_tokens",
        metavar="N",
    ),
    Key(
        name="system_prompt",
        help="replaces the environment's: a text, or the file that holds it",
        parse=text,
        metavar="FILE|TEXT",
    ),
    Key(
        name="examples",
        help="few-shot items instead of the environment's: a JSON list, or one item per line",
        parse=path,
        metavar="FILE",
    ),
    Key(
        name="skip_bad",
        help="go on without input lines that are invalid",
        parse=boolean,
        default=False,
        switch=True,
    ),
    Key(
        name="wait",
        help="return when every rollout has its row",
        parse=boolean,
        default=False,
        switch=True,
    ),
)
