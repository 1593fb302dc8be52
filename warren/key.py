"""One setting as data, and the readers of its values.

A reader takes a flag's text or a TOML value and gives the setting; its ValueError says what is
allowed.
"""

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from broker.masking import Url
from broker.names import NAME_PATTERN, is_name

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
        if not _has_port(parsed):
            raise ValueError(f"{allowed}, with a port up to 65535")
        return parsed

    return parse


def _has_port(given: Url) -> bool:
    """Whether its port is none or a number. What it is instead may be half of a password."""
    try:
        urlsplit(given.reveal()).port  # noqa: B018
    except ValueError:
        return False
    return True


def _range(least: float, most: float | None) -> str:
    return f"at least {least:g}" if most is None else f"from {least:g} to {most:g}"


#: How many of something.
COUNT: Final = integer(1)
#: How long something may take.
SECONDS: Final = number(0, above=True)
