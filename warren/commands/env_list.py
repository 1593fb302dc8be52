"""`warren env list`: the environments that can be named."""

import json
import sys

from warren.loading import list_environments, load_environment
from warren.options import EXIT_OK, EnvListOptions
from warren.settings import Settings


async def run(options: EnvListOptions, settings: Settings) -> int:
    """A line each: name, what it has, what it says of itself."""
    rows = [_row(name) for name in list_environments()]
    if options.json:
        sys.stdout.write(json.dumps({"environments": rows}) + "\n")
    else:
        width = max((len(row["name"]) for row in rows), default=0)
        for row in rows:
            sys.stdout.write(f"{row['name'].ljust(width)}  {row['about']}\n")
    return EXIT_OK


def _row(name: str) -> dict[str, str]:
    environment = load_environment(name)
    return {"name": name, "about": environment.about, "tasks": str(environment.tasks or "")}
