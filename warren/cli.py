"""The command `warren`: parse, build settings, call one function, end with an exit code."""

import asyncio
import gc
import importlib
import os
import resource
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, Final

from broker import crashpoints
from broker.errors import BrokerError, JournalUnavailable, Unreachable, UsageError
from broker.masking import mask_url
from warren import logs
from warren.cli_commands import Given
from warren.cli_parser import Parsed, parse, show
from warren.kept_memory import keep_freed_memory
from warren.options import EXIT_INTERRUPTED, EXIT_OK, EXIT_UNREACHABLE, EXIT_USAGE
from warren.settings import Settings, debugging, load

#: What went wrong and is not our bug: the user sees one paragraph, not a traceback.
_EXIT_CODES: Final[dict[type[Exception], int]] = {
    UsageError: EXIT_USAGE,
    Unreachable: EXIT_UNREACHABLE,
    BrokerError: EXIT_UNREACHABLE,
    JournalUnavailable: EXIT_UNREACHABLE,
}

#: Python's 700 looks for cycles after every other message; ours are few, but for exceptions'.
_GC_THRESHOLDS: Final = (20_000, 20, 10)

#: Shells often give 1,024 of the many that the system allows.
_OPEN_FILES: Final = 65_536

Run = Callable[[Any, Settings], Coroutine[Any, Any, int]]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    try:
        return _main(list(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # `warren runs | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return EXIT_OK
    except Exception as e:
        known = known_error(e)
        if known is None or debugging():
            raise
        sys.stderr.write(f"warren: {mask_url(str(known))}\n")
        return _exit_code(known)


def _main(argv: list[str]) -> int:
    parsed = parse(argv)
    if isinstance(parsed, str):
        show(parsed)
        return EXIT_OK
    loaded = load(parsed.flags)
    settings = loaded.settings
    options = parsed.command.build(Given(parsed.words, loaded.values, settings))
    logs.configure(
        settings.log_level or parsed.command.log_level,
        json_lines=settings.log_json,
        secrets=settings.secrets(),
    )
    crashpoints.arm(settings.crashpoint or "")
    run = _import(parsed)
    return _run_loop(run(options, settings))


def _import(parsed: Parsed) -> Run:
    module, _, function = parsed.command.target.partition(":")
    run: Run = getattr(importlib.import_module(module), function)
    return run


def open_files() -> int:
    """Take as many open files as we may, since each call in flight is one; how many those are."""
    soft, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if most == resource.RLIM_INFINITY else min(most, _OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
    return wanted


def _run_loop(command: Coroutine[Any, Any, int]) -> int:
    # A shell that starts us in the background has SIGINT ignored; Ctrl-C must stop us anyhow.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # What was imported stays; what a rollout leaves dies with its last reference.
    open_files()
    keep_freed_memory()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_interruptible(command))


async def _interruptible(command: Coroutine[Any, Any, int]) -> int:
    # By now the runner handles SIGINT by cancelling us. SIGTERM means the same, unless the
    # command (a worker) has its own idea of it.
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGINT))
    return await command


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def known_error(error: BaseException) -> Exception | None:
    """The error in `error` (a group, perhaps) that the user can do something about."""
    known = [e for e in _leaves(error) if isinstance(e, tuple(_EXIT_CODES))]
    return min(known, key=_exit_code, default=None)


def _leaves(error: BaseException) -> Iterator[Exception]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    elif isinstance(error, Exception):
        yield error


def _exit_code(error: Exception) -> int:
    return next(code for kind, code in _EXIT_CODES.items() if isinstance(error, kind))
