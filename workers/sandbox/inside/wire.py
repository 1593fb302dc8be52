"""Plain values as lines of JSON, between the tests' sandbox and the solution's.

What arrives is data and nothing else: no class of the sender is ever built, so a solution can't
send an object that claims to equal everything.
"""

import json
from collections.abc import Callable
from typing import Any, BinaryIO, Final

#: Longer lines are refused, so that a reply can't exhaust the reader.
MAX_LINE_BYTES: Final = 4 * 1024 * 1024
#: Longer integers go as hexadecimals: Python refuses decimals of more than 4300 digits.
_PLAIN_BITS: Final = 8192

ToRef = Callable[[Any], int]
FromRef = Callable[[int], Any]


class WireError(Exception):
    """The other side sent nonsense, too much, or ended."""


def pack(value: Any, to_ref: ToRef) -> Any:
    """JSON for a value; what isn't plain data becomes a reference by `to_ref`."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and value.bit_length() > _PLAIN_BITS:
        return {"int": hex(value)}
    if isinstance(value, (int, float, str)):
        base = next(kind for kind in (int, float, str) if isinstance(value, kind))
        return base(value)
    if isinstance(value, list):
        return [pack(item, to_ref) for item in value]
    for tag, kind in _COLLECTIONS.items():
        if isinstance(value, kind):
            return {tag: [pack(item, to_ref) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[pack(k, to_ref), pack(v, to_ref)] for k, v in value.items()]}
    if isinstance(value, (bytes, bytearray)):
        return {type(value).__name__: value.decode("latin-1")}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    return {"ref": to_ref(value)}


def unpack(data: Any, from_ref: FromRef) -> Any:
    """The value again. Raises WireError for what `pack` never makes."""
    if isinstance(data, list):
        return [unpack(item, from_ref) for item in data]
    if not isinstance(data, dict):
        return data
    try:
        [(tag, content)] = data.items()
        if tag in _COLLECTIONS:
            return _COLLECTIONS[tag](unpack(item, from_ref) for item in content)
        if tag == "dict":
            return {unpack(k, from_ref): unpack(v, from_ref) for k, v in content}
        if tag in _BYTES:
            return _BYTES[tag](content, "latin-1")
        if tag == "int":
            return int(content, 16)
        if tag == "complex":
            return complex(*content)
        if tag == "ref":
            return from_ref(int(content))
    except (TypeError, ValueError) as error:
        raise WireError(f"not a value: {error}") from error
    raise WireError("not a value")


def send(stream: BinaryIO, message: dict[str, Any]) -> None:
    """Write one message. Raises WireError when nobody reads any more."""
    try:
        stream.write(json.dumps(message).encode("ascii") + b"\n")
        stream.flush()
    except OSError as error:
        raise WireError("the other side ended") from error


def receive(stream: BinaryIO) -> dict[str, Any]:
    """Read one message. Raises WireError."""
    line = stream.readline(MAX_LINE_BYTES)
    if not line.endswith(b"\n"):
        raise WireError("a value too large to send" if line else "the other side ended")
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise WireError("not a message") from error
    if not isinstance(message, dict):
        raise WireError("not a message")
    return message


_COLLECTIONS: Final[dict[str, type[Any]]] = {
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
}
_BYTES: Final[dict[str, type[Any]]] = {"bytes": bytes, "bytearray": bytearray}
