"""Few-shot examples from a file: a run's own, in the place of the environment's."""

import json
from pathlib import Path

from broker import codec
from broker.errors import UsageError
from warren.checks import InvalidEnvironment, checked_examples


def read_examples(path: Path) -> bytes:
    """The packed items of a JSON list, or of a file with one item per line. Raises UsageError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as e:
        raise UsageError(f"--examples {path}: {e}") from e
    try:
        whole = text.lstrip().startswith("[")
        items = json.loads(text) if whole else [json.loads(x) for x in text.splitlines() if x]
        return codec.pack(list(checked_examples("--examples", items)))
    except (ValueError, InvalidEnvironment) as e:
        raise UsageError(
            f"--examples {path}: {e}; write Responses items, for example "
            '{"role": "user", "content": "..."}, one per line'
        ) from e
