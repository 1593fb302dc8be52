"""`warren dlq list|show|replay|drop`: what nobody could handle, kept for people to look at."""

import json
import sys
from collections.abc import Sequence

from broker.errors import UsageError
from warren.connections import connect
from warren.dead_letters import Letter, letters, readable, replay
from warren.options import EXIT_OK, DlqOptions
from warren.settings import Settings


async def run(options: DlqOptions, settings: Settings) -> int:
    """Work on the kept messages that were named."""
    if settings.broker is None:
        raise UsageError("dlq needs --broker URL (WARREN_BROKER)")
    async with connect(settings) as at, letters(at.broker) as kept:
        found = [letter for letter in kept if options.run in (None, letter.run)]
        match options.action:
            case "list":
                _list(found, options)
            case "show":
                for letter in _chosen(found, options):
                    sys.stdout.write(json.dumps(readable(letter), ensure_ascii=False) + "\n")
            case "replay":
                chosen = _chosen(found, options)
                for letter in chosen:
                    await replay(at.broker, letter)
                _say(options, "replayed", chosen)
            case "drop":
                chosen = _chosen(found, options)
                for letter in chosen:
                    letter.delivery.ack()
                _say(options, "dropped", chosen)
    return EXIT_OK


def _chosen(found: Sequence[Letter], options: DlqOptions) -> list[Letter]:
    """Those that were named, or all. Raises UsageError for an unknown id."""
    if options.every:
        return list(found)
    known = {letter.id for letter in found}
    if missing := [id_ for id_ in options.ids if id_ not in known]:
        raise UsageError(f"no such dead letter: {', '.join(missing)}; see `warren dlq list`")
    if not options.ids:
        raise UsageError("name the ids that `warren dlq list` shows, or say --all")
    return [letter for letter in found if letter.id in options.ids]


def _list(found: Sequence[Letter], options: DlqOptions) -> None:
    shown = [letter.summary() for letter in found[: options.limit]]
    if options.json:
        sys.stdout.write(json.dumps({"count": len(found), "letters": shown}) + "\n")
        return
    for each in shown:
        sys.stdout.write("  ".join(each.values()) + "\n")
    sys.stdout.write(f"{len(found):,} kept\n")


def _say(options: DlqOptions, done: str, chosen: Sequence[Letter]) -> None:
    if options.json:
        sys.stdout.write(json.dumps({done: [letter.id for letter in chosen]}) + "\n")
    else:
        sys.stdout.write(f"{done} {len(chosen):,}\n")
