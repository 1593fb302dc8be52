"""`warren audit OUTPUT`: check every part and every id."""

import asyncio
import json
import sys

from broker.errors import UsageError
from sinks.audit import Report, audit
from warren.options import EXIT_FAILED, EXIT_OK, AuditOptions
from warren.settings import Settings


async def run(options: AuditOptions, settings: Settings) -> int:
    """Say OK, or exactly what is wrong and where."""
    if not options.output.exists():
        raise UsageError(f"{options.output}: no such file or directory")
    report = await asyncio.to_thread(audit, options.output)
    sys.stdout.write(_json(report) if options.json else _text(report))
    return EXIT_OK if report.ok else EXIT_FAILED


def _json(report: Report) -> str:
    found = {
        "ok": report.ok,
        "rows": report.rows,
        "superseded": report.superseded,
        "void_files": report.void,
        "problem_count": report.problem_count,
        "problems": list(report.problems),
    }
    return json.dumps(found) + "\n"


def _text(report: Report) -> str:
    if report.ok:
        return f"OK: {report.rows:,} rows, each rollout once\n{_void(report)}"
    told = "\n".join(report.problems)
    return f"{told}\n{report.problem_count:,} problems in {report.rows:,} rows\n"


def _void(report: Report) -> str:
    """What other readers of the directory, which know nothing of merged parts, must know."""
    if not report.void:
        return ""
    return (
        f"{report.void:,} files besides, of merged parts: the next sink that opens it ends them\n"
    )
