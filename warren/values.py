"""What each key's value is and where it stood: flag > environment > warren.toml > default.

A wrong value or an unknown key is a UsageError that names where it stands and what is allowed.
"""

import difflib
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from broker.errors import UsageError
from broker.masking import Secret, mask_url
from warren import secret_files
from warren.key import Key, Unspoken
from warren.keys import KEYS

DEFAULT_FILE: Final = "warren.toml"


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """warren.toml, flattened: `limits.max_steps` -> 50; models apart, they have names."""

    path: str
    values: Mapping[str, Any]
    models: Mapping[str, Mapping[str, Any]]


class Values:
    """The value of each key and where it came from, by precedence."""

    def __init__(
        self, flags: Mapping[str, Any], environ: Mapping[str, str], file: ConfigFile
    ) -> None:
        self._flags = flags
        self._environ = environ
        self._file = file

    def get(self, name: str) -> Any:
        """The parsed value of the key, or its default. Raises UsageError."""
        key = KEYS[name]
        for where, raw in self._candidates(key):
            return parse(key, where, raw)
        return key.default

    def _candidates(self, key: Key) -> Iterable[tuple[str, Any]]:
        if not key.hidden and key.name in self._flags:
            yield key.options[-1], self._flags[key.name]
        if key.secret and (held := secret_files.mounted(self._environ, key.twin)):
            yield f"{key.twin}_FILE", held
        if twin := self._environ.get(key.twin):
            yield key.twin, twin.split(",") if key.many else twin
        if key.toml is not None and key.toml in self._file.values:
            yield f"{self._file.path}: {key.toml}", self._file.values[key.toml]


def parse(key: Key, where: str, raw: Any) -> Any:
    """The value of what stands at `where`. Raises UsageError, which never tells a secret."""
    if isinstance(raw, Secret):  # of a file
        return _parse_unseen(key, where, raw)
    try:
        if not key.many:
            return key.parse(raw)
        if not isinstance(raw, Sequence) or isinstance(raw, str):
            raise ValueError("must be a list")
        return tuple(key.parse(one) for one in raw)
    except Unspoken as e:
        raise UsageError(f"{where} {e}") from None
    except ValueError as e:
        raise UsageError(f"{where}: {mask_url(repr(raw))} {e}") from None


def _parse_unseen(key: Key, where: str, held: Secret) -> Any:
    try:
        return key.parse(held.reveal())
    except ValueError as e:
        raise UsageError(f"{where}: what the file holds {e}") from None


def read_file(path: Path | None) -> ConfigFile:
    """Read `path`; without one ./warren.toml, if there is one. Raises UsageError."""
    if path is None and not Path(DEFAULT_FILE).is_file():
        return ConfigFile("", {}, {})
    chosen = path or Path(DEFAULT_FILE)
    try:
        tree = tomllib.loads(chosen.read_text(encoding="utf-8"))
    except OSError as e:
        raise UsageError(f"cannot read {chosen}: {e.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise UsageError(f"{chosen} is not valid TOML: {e}") from None
    models = tree.pop("models", {})
    if not isinstance(models, dict) or not all(isinstance(m, dict) for m in models.values()):
        raise UsageError(f'{chosen}: models must be tables, [models."NAME"]')
    values = dict(flatten(tree))
    keys = {key.toml: key for key in KEYS.values() if key.toml}
    refuse_unknown(str(chosen), values, list(keys))
    for place, raw in values.items():  # all of it, whatever this command uses
        parse(keys[place], f"{chosen}: {place}", raw)
    return ConfigFile(str(chosen), values, models)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """`a.b` and its value, for tables in tables."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def refuse_unknown(where: str, given: Iterable[str], known: Sequence[str]) -> None:
    """Raises UsageError for a key that does not exist: a typo shall not be ignored."""
    for name in given:
        if name not in known:
            raise UsageError(f"{where}: unknown key {name!r}{did_you_mean(name, known)}")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or else what is known, as the end of an error's sentence."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1)
    return f"; did you mean {close[0]!r}?" if close else "; known: " + ", ".join(names)
