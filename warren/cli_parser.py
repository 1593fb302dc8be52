"""From words on the command line to a command and what was given to it.

Only the parser of the command that was typed is built. Values stay text here: `values.py`
parses them, so that flags, environment and file fail with the same sentences.
"""

import argparse
import difflib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from broker.errors import UsageError
from warren.cli_commands import COMMANDS, Command, Word
from warren.key import Key
from warren.keys import KEYS
from warren.values import did_you_mean

_ENDING = """\
In brackets: the option's environment twin and its place in warren.toml; models stand there as
[models."NAME"] with base_urls or path, api, api_key_env, limits and prices (docs/models.md).
A flag beats the environment, which beats warren.toml (./warren.toml, or --config FILE).
Exit codes: 0 every rollout has a row; 2 wrong usage or input; 3 a broker, store or model cannot be
reached; 4 more failed than --max-failed; 130 interrupted, the same command goes on."""


@dataclass(frozen=True, slots=True)
class Parsed:
    """A command, and what was typed for it."""

    command: Command
    words: dict[str, Any]
    flags: dict[str, Any]


def parse(argv: Sequence[str]) -> Parsed | str:
    """The command to run, or a text to print instead (help, version). Raises UsageError."""
    if argv[:1] == ["--version"]:
        from warren import __version__

        return f"warren {__version__}"
    if not argv or argv[0] in {"-h", "--help", "help"}:
        return overview()
    command = _find(argv)
    if command is None:
        return overview(argv[0])
    rest = argv[len(command.name.split()) :]
    parser = _parser(command)
    if "-h" in rest or "--help" in rest:
        return parser.format_help().rstrip()
    known, unknown = parser.parse_known_intermixed_args(rest)
    if unknown:
        raise UsageError(_unknown(command, unknown))
    given = vars(known)
    names = [word.name for word in command.words]
    words = {name: given.pop(f"word {name}") for name in names}
    return Parsed(command, words, given)


def overview(group: str = "") -> str:
    """All commands, or those of one group, a line each."""
    lines = [
        f"  {command.name:<16} {command.help}"
        for command in COMMANDS.values()
        if not command.hidden and (not group or command.name.split()[0] == group)
    ]
    usage = f"usage: warren {group + ' ' if group else ''}COMMAND [options]"
    tail = "`warren COMMAND --help` shows a command's options.\n\n" + _ENDING
    return "\n".join([usage, "", *lines, "", tail])


def _find(argv: Sequence[str]) -> Command | None:
    """The command that `argv` begins with; None for the bare name of a group."""
    first, second = argv[0], argv[1] if len(argv) > 1 else "--help"
    if first in COMMANDS:
        return COMMANDS[first]
    in_group = [name.split()[1] for name in COMMANDS if name.startswith(f"{first} ")]
    if not in_group:
        known = {name.split()[0] for name, command in COMMANDS.items() if not command.hidden}
        raise UsageError(f"there is no command {first!r}{did_you_mean(first, known)}")
    if second in {"-h", "--help"}:
        return None
    if second not in in_group:
        raise UsageError(f"there is no `warren {first} {second}`{did_you_mean(second, in_group)}")
    return COMMANDS[f"{first} {second}"]


class _Parser(argparse.ArgumentParser):
    """Raises instead of printing its usage and exiting."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (`{self.prog} --help` shows how)")


def _parser(command: Command) -> _Parser:
    parser = _Parser(
        prog=f"warren {command.name}",
        description=command.help[0].upper() + command.help[1:] + ".",
        epilog=(f"Example: {command.example}\n\n" if command.example else "") + _ENDING,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    for word in command.words:
        _add_word(parser, word)
    for name in command.keys:
        _add_key(parser, KEYS[name])
    parser.add_argument(
        "--config", metavar="FILE", help="settings file (default: ./warren.toml) [WARREN_CONFIG]"
    )
    return parser


def _add_word(parser: _Parser, word: Word) -> None:
    many = "*" if word.many else "?" if word.optional else None
    parser.add_argument(
        f"word {word.name}",
        metavar=word.name.upper(),
        help=word.help,
        nargs=many,
        default=[] if word.many else None,
    )


def _add_key(parser: _Parser, key: Key) -> None:
    shown = f"{key.default:g}" if isinstance(key.default, float) else str(key.default)
    default = "" if key.default in (None, False, ()) else f" (default: {shown})"
    places = key.twin if key.toml is None else f"{key.twin}, {key.toml}"
    text = f"{key.help}{default} [{places}]".replace("%", "%%")
    if key.switch:
        parser.add_argument(*key.options, dest=key.name, help=text, action="store_true")
    else:
        action = "append" if key.many else "store"
        parser.add_argument(
            *key.options, dest=key.name, help=text, metavar=key.metavar, action=action
        )


def _unknown(command: Command, unknown: Sequence[str]) -> str:
    word = unknown[0].partition("=")[0]
    flags = [flag for name in command.keys for flag in KEYS[name].options]
    close = difflib.get_close_matches(word, [*flags, "--config"], n=1)
    hint = f"; did you mean {close[0]}?" if close else f"; `warren {command.name} --help` shows all"
    what = "option" if word.startswith("-") else "argument"
    return f"unknown {what} {word!r}{hint}"


def show(text: str) -> None:
    """Print a text that was asked for."""
    sys.stdout.write(text + "\n")
