"""Secrets in files, one each, as Docker and Kubernetes mount them: `NAME_FILE` beside `NAME`.

Read once, at start; white space around the secret is not part of it. Errors name the file, never
what it holds. Who may read the file is not judged: mounted secrets are readable by all inside
their container.
"""

from collections.abc import Mapping
from pathlib import Path

from broker.errors import UsageError
from broker.masking import Secret


def read(file: Path, where: str) -> Secret:
    """The secret in `file`, which was named at `where`. Raises UsageError."""
    try:
        held = file.expanduser().read_text(encoding="utf-8").strip()
    except OSError as e:
        raise UsageError(f"{where}: cannot read {file}: {e.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{where}: {file} is not text") from None
    if not held:
        raise UsageError(f"{where}: {file} is empty")
    if not held.isprintable():
        raise UsageError(f"{where}: {file} must hold one line, the secret alone")
    return Secret(held)


def mounted(environ: Mapping[str, str], variable: str) -> Secret | None:
    """What is in the file that `<variable>_FILE` names; None without one. Raises UsageError."""
    twin = f"{variable}_FILE"
    file = environ.get(twin)
    if not file:
        return None
    if environ.get(variable):
        raise UsageError(f"both {variable} and {twin} are set: leave one of them")
    return read(Path(file), twin)


def find(environ: Mapping[str, str], variable: str) -> Secret | None:
    """The secret in `variable`, or in its file; None without either. Raises UsageError."""
    held = mounted(environ, variable)
    value = environ.get(variable)
    return Secret(value) if value else held
