"""`warren env init NAME`: write a working environment to start from."""

import sys

from warren.options import EXIT_OK, EnvInitOptions
from warren.scaffold import write_environment
from warren.settings import Settings


async def run(options: EnvInitOptions, settings: Settings) -> int:
    """Write it, and say what to type next."""
    file, tasks, tests = write_environment(options.name, options.directory)
    for path in (file, tasks, tests):
        sys.stdout.write(f"wrote {path}\n")
    sys.stderr.write(
        f"try it:     warren env test {file}\n"
        f"collect it: warren collect {tasks} --env {file} --model scripted -o rollouts.jsonl\n"
    )
    return EXIT_OK
