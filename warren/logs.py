"""Logging to stderr: lines for people, or JSON lines for machines, and secrets in neither.

Messages are constant texts and data is in `extra`, so that logs can be searched and counted.
"""

import json
import logging
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from broker.masking import MASK, mask_url

#: What every LogRecord has; everything else on it came from `extra`.
_BUILTIN: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

Render = Callable[[logging.LogRecord, str], str]
"""A record and its traceback, as text."""


def configure(level: str, *, json_lines: bool, secrets: frozenset[str] = frozenset()) -> None:
    """Send the whole process's log to stderr, from `level` on, with `secrets` masked."""
    handler = Stderr()
    handler.setFormatter(Masking(json_line if json_lines else human_line, secrets))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy in ("aiormq", "aio_pika", "httpx", "httpx2", "openai", "aiohttp.access"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))


class Stderr(logging.Handler):
    """Writes to what sys.stderr is at the moment: a live progress bar takes its place."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(self.format(record) + "\n")
        except (OSError, ValueError, TypeError):
            self.handleError(record)


class Masking(logging.Formatter):
    """Renders a record and masks what is a secret, in whatever part of the line it stands."""

    def __init__(self, render: Render, secrets: frozenset[str]) -> None:
        super().__init__()
        self._render = render
        told = {
            form
            for secret in secrets
            if len(secret) >= 4
            for form in (secret, json.dumps(secret, ensure_ascii=False)[1:-1])
        }
        # The longest first: one secret may contain another.
        self._secrets = sorted(told, key=len, reverse=True)

    def format(self, record: logging.LogRecord) -> str:
        trace = self.formatException(record.exc_info) if record.exc_info else ""
        line = mask_url(self._render(record, trace))
        for secret in self._secrets:
            line = line.replace(secret, MASK)
        return line


def human_line(record: logging.LogRecord, trace: str) -> str:
    """`12:00:01 warning broker.serve: dead letter queue=warren.q.v1.task reason=...`"""
    when = time.strftime("%H:%M:%S", time.localtime(record.created))
    head = f"{when} {record.levelname.lower()} {record.name}: {record.getMessage()}"
    data = [f"{key}={_word(value)}" for key, value in _extra(record)]
    return " ".join([head, *data]) + (f"\n{trace}" if trace else "")


def json_line(record: logging.LogRecord, trace: str) -> str:
    """One JSON object: `time` (Unix seconds), `level`, `logger`, `message`, the record's data."""
    entry: dict[str, Any] = {
        "time": round(record.created, 3),
        "level": record.levelname.lower(),
        "logger": record.name,
        "message": record.getMessage(),
        **dict(_extra(record)),
    }
    if trace:
        entry["traceback"] = trace
    return json.dumps(entry, default=str, ensure_ascii=False)


def _extra(record: logging.LogRecord) -> Iterator[tuple[str, Any]]:
    return ((k, v) for k, v in vars(record).items() if k not in _BUILTIN)


def _word(value: object) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if " " in text or "\n" in text else text
