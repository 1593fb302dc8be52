"""Every setting there is, as data: its flag, its environment twin, its place in warren.toml.

`settings.py` reads values by this table and `cli.py` makes flags and --help from it, so that the
three can't drift apart. Precedence: flag > environment > warren.toml > default.
"""

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from broker.masking import Url
from broker.names import NAME_PATTERN, is_name
from broker.shared.base import PAUSE_MODES

Parse = Callable[[object], Any]
"""From a flag's text or a TOML value to the setting; ValueError says what is allowed."""


class Unspoken(ValueError):
    """Wrong, and not to be repeated in the error: it may be a secret."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One setting."""

    name: str
    help: str
    parse: Parse
    default: Any = None
    flags: tuple[str, ...] = ()
    """The first one names the environment twin; empty: `--` and the name."""
    hidden: bool = False
    """No flag, only the environment and the file."""
    toml: str | None = None
    """`limits.max_steps`; None: it belongs to one command line, not into a file."""
    metavar: str = "TEXT"
    many: bool = False
    """Repeatable flag, comma-separated twin, TOML array."""
    switch: bool = False
    """A flag without a value."""
    secret: bool = False
    """It holds a password: the twin's `_FILE` may name the file that it stands in."""

    @property
    def options(self) -> tuple[str, ...]:
        """The flags, as argparse takes them."""
        return self.flags or ("--" + self.name.replace("_", "-"),)

    @property
    def twin(self) -> str:
        """The environment variable: `WARREN_MAX_STEPS`."""
        long = next(flag for flag in self.options if flag.startswith("--"))
        return "WARREN_" + long[2:].replace("-", "_").upper()


def text(value: object) -> str:
    """Any text that is not empty."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError("must be a text that is not empty")
    return value


def path(value: object) -> Path:
    """A path, `~` expanded."""
    return Path(text(value)).expanduser()


def variable(value: object) -> str:
    """The name of an environment variable that holds a key; people paste the key itself."""
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
        raise Unspoken("must be the name of an environment variable, not a key itself")
    return value


def name(value: object) -> str:
    """A run's name."""
    if not isinstance(value, str) or not is_name(value):
        raise ValueError(f"must match {NAME_PATTERN.pattern}")
    return value


def shell_words(value: object) -> tuple[str, ...]:
    """A text cut into words as a shell does."""
    try:
        return tuple(shlex.split(text(value)))
    except ValueError as e:
        raise ValueError(f"must be words as on a command line ({e})") from None


def boolean(value: object) -> bool:
    """true or false, in the spellings that people use."""
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    if word in {"1", "true", "yes", "on"}:
        return True
    if word in {"0", "false", "no", "off"}:
        return False
    raise ValueError("must be true or false")


def integer(least: int, most: int | None = None) -> Parse:
    """A whole number in `least`..`most`."""
    allowed = f"must be a whole number, {_range(least, most)}"

    def parse(value: object) -> int:
        try:
            number = value if isinstance(value, int) else int(str(value).replace("_", ""))
        except ValueError:
            raise ValueError(allowed) from None
        if isinstance(value, bool) or number < least or (most is not None and number > most):
            raise ValueError(allowed)
        return number

    return parse


def number(least: float, most: float | None = None, *, above: bool = False) -> Parse:
    """A number in `least`..`most`; `above` excludes `least` itself."""
    allowed = f"must be a number {f'above {least:g}' if above else _range(least, most)}"

    def parse(value: object) -> float:
        try:
            parsed = float(str(value))
        except ValueError:
            raise ValueError(allowed) from None
        low = parsed <= least if above else parsed < least
        if low or parsed != parsed or parsed == float("inf") or (most and parsed > most):
            raise ValueError(allowed)
        return parsed

    return parse


def one_of(*words: str) -> Parse:
    """One of these words."""

    def parse(value: object) -> str:
        if value not in words:
            raise ValueError("must be " + " or ".join(words))
        return str(value)

    return parse


def url(*schemes: str) -> Parse:
    """A URL with a host and one of these schemes."""
    allowed = "must be a URL like " + " or ".join(f"{s}://host[:port]" for s in schemes)

    def parse(value: object) -> Url:
        parsed = Url(str(value).strip())
        if parsed.scheme not in schemes or "://" not in parsed.reveal() or not parsed.host:
            raise ValueError(allowed)
        return parsed

    return parse


def _range(least: float, most: float | None) -> str:
    return f"at least {least:g}" if most is None else f"from {least:g} to {most:g}"


_COUNT: Final = integer(1)
_SECONDS: Final = number(0, above=True)

#: Where things are and how this process behaves: `Settings`.
PLACE: Final[tuple[Key, ...]] = (
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
        name="base_url",
        help="OpenAI-compatible endpoint of --model, up to /v1; repeat for more replicas",
        parse=url("http", "https"),
        metavar="URL",
        many=True,
    ),
    Key(
        name="judge_model",
        help="model that judges in this run, in the place of the environment's judge_model",
        parse=text,
        metavar="NAME",
    ),
    Key(
        name="judge_base_url",
        help="endpoint of --judge-model; repeat for more replicas",
        parse=url("http", "https"),
        metavar="URL",
        many=True,
    ),
    Key(
        name="api_key_env",
        help="environment variable that holds --model's API key (default: OPENAI_API_KEY)",
        parse=variable,
        metavar="VAR",
    ),
    Key(
        name="api_key_file",
        help="file that holds it instead",
        parse=path,
        metavar="FILE",
    ),
    Key(
        name="api",
        help="what --base-url speaks: chat, responses, vllm (chat with its tokens) or auto"
        " (responses at OpenAI, vllm where it is recognised, else chat)",
        parse=one_of("auto", "chat", "responses", "vllm"),
        metavar="KIND",
    ),
    Key(
        name="model_path",
        help="directory (or Hugging Face name) of --model's weights, which vLLM serves inside this"
        " process; needs the vllm extra",
        parse=text,
        metavar="PATH",
    ),
    Key(
        name="engine_args",
        help="of `vllm serve`, in one text, for --model-path: '--tool-call-parser hermes'",
        parse=shell_words,
        metavar="ARGS",
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
        parse=_SECONDS,
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
    Key(name="block_limit", help="", parse=_SECONDS, default=30.0, hidden=True),
)

#: What one command shall do: `CollectOptions` and its siblings.
ORDER: Final[tuple[Key, ...]] = (
    Key(
        name="environment",
        flags=("--env",),
        help="environment of the tasks: a name, or path/to/file.py[:name]",
        parse=text,
        metavar="ENV",
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
        name="model",
        help="model that plays; `scripted` is the environment's own policy",
        parse=text,
        toml="model",
        metavar="NAME",
    ),
    Key(
        name="output",
        flags=("-o", "--output"),
        help="where the rows go",
        parse=path,
        toml="output",
        metavar="PATH",
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
        parse=_COUNT,
        default=1,
        toml="collect.repeats",
        metavar="N",
    ),
    Key(name="limit", help="only the first N input lines", parse=_COUNT, metavar="N"),
    Key(
        name="concurrency",
        help="rollouts that run at once",
        parse=_COUNT,
        default=64,
        toml="collect.concurrency",
        metavar="N",
    ),
    Key(
        name="window",
        help="most uncommitted rollouts at a time",
        parse=_COUNT,
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
        name="temperature",
        help="sampling temperature",
        parse=number(0, 2),
        toml="sampling.temperature",
        metavar="X",
    ),
    Key(
        name="top_p",
        help="nucleus sampling",
        parse=number(0, 1, above=True),
        toml="sampling.top_p",
        metavar="X",
    ),
    Key(
        name="max_output_tokens",
        help="per model call",
        parse=_COUNT,
        toml="sampling.max_output_tokens",
        metavar="N",
    ),
    Key(
        name="seed",
        help="sampling seed, where the provider has one",
        parse=integer(0),
        toml="sampling.seed",
        metavar="N",
    ),
    Key(
        name="max_steps",
        help="model calls per rollout, then it is truncated",
        parse=_COUNT,
        default=50,
        toml="limits.max_steps",
        metavar="N",
    ),
    Key(
        name="timeout",
        help="seconds per rollout, then it is truncated",
        parse=_SECONDS,
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
        parse=_COUNT,
        toml="limits.max_total_tokens",
        metavar="N",
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
        parse=_COUNT,
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
        name="max_failed",
        help="exit with 4 when more rollouts failed than this",
        parse=integer(0),
        toml="collect.max_failed",
        metavar="N",
    ),
    Key(
        name="failures",
        help="file for failed rollouts (default: in the output, reward null)",
        parse=path,
        metavar="PATH",
    ),
    Key(
        name="skip_bad",
        help="go on without input lines that are invalid",
        parse=boolean,
        default=False,
        switch=True,
    ),
    Key(
        name="overwrite",
        help="delete what another run left at the output",
        parse=boolean,
        default=False,
        switch=True,
    ),
    Key(
        name="retry_failed",
        help="run rollouts that failed before again",
        parse=boolean,
        default=False,
        switch=True,
    ),
    Key(
        name="policy_version",
        flags=("--policy-version", "--version"),
        help="the new weights' version, which rows will carry; it never falls",
        parse=integer(0),
        metavar="N",
    ),
    Key(
        name="weights",
        flags=("--path",),
        help="directory of the new weights, as the model's servers see it",
        parse=text,
        metavar="DIR",
    ),
    Key(
        name="mode",
        help="what becomes of running requests: keep (go on with the new weights), wait (finish"
        " first) or abort (made again)",
        parse=one_of(*PAUSE_MODES),
        default="keep",
        metavar="MODE",
    ),
    Key(
        name="wait",
        help="return when every rollout has its row",
        parse=boolean,
        default=False,
        switch=True,
    ),
    Key(
        name="every",
        flags=("--all",),
        help="all of them (of --run, where one is named)",
        parse=boolean,
        default=False,
        switch=True,
    ),
    Key(
        name="prefetch",
        help="deliveries to have in hand at once",
        parse=integer(1, 65535),
        metavar="N",
    ),
    Key(
        name="quiet",
        flags=("-q", "--quiet"),
        help="no progress and no summary",
        parse=boolean,
        default=False,
        switch=True,
    ),
    Key(
        name="json",
        help="one JSON object as stdout's last line",
        parse=boolean,
        default=False,
        switch=True,
    ),
)

#: Work in hand per worker kind where nothing else is said; agents wait, so they hold many.
PREFETCH: Final = {"agent": 64, "tool": 64, "model": 256, "verifier": 64, "sink": 1024}
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

KEYS: Final = {key.name: key for key in (*PLACE, *ORDER, *PREFETCH_KEYS)}
