"""Bytes <-> messages: msgpack with explicit limits, zstd above a threshold, typed.

A hostile or broken body costs bounded memory and ends as `Undecodable` or `TooLarge`, never as a
crash: sizes are checked before unpacking, array and map lengths and depth while unpacking (a
1 MiB msgpack body can otherwise ask for 8 GiB: queues.md, section 10), types then or afterwards.

msgspec packs and reads messages, msgpack packs plain data: it refuses what would come back as
something else (dates, sets, enums). msgspec reads plain data that is as simple as nearly all of it
is, at a third of the cost; whatever it finds odd is msgpack's to read or refuse, which has limits.
"""

import dataclasses
import functools
import hashlib
import struct
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import msgpack
import msgspec
import zstandard

from broker.errors import TooLarge, Undecodable
from broker.messages import SCHEMA_VERSION

#: RabbitMQ 4.x refuses messages above 16 MiB; rows with tokens of long rollouts come near 8.
MAX_BODY_BYTES: Final = 15 * 1024 * 1024
#: What a compressed body may unpack to.
MAX_UNPACKED_BYTES: Final = 256 * 1024 * 1024
#: Below this, compression costs more than the bytes it saves.
COMPRESS_ABOVE_BYTES: Final = 16 * 1024
MAX_DEPTH: Final = 32
MAX_ARRAY: Final = 262_144
MAX_MAP: Final = 65_536

_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
#: What does not begin an array or a map.
_NO_CONTAINERS: Final = bytes({*range(256)} - {*range(0x80, 0xA0), 0xDC, 0xDD, 0xDE, 0xDF})
_ENCODER: Final = msgspec.msgpack.Encoder()
_LENGTH: Final = struct.Struct(">I")

_decoder: Final[Callable[[Any], msgspec.msgpack.Decoder[Any]]] = functools.cache(
    msgspec.msgpack.Decoder
)
#: Plain data as it mostly comes.
_PLAIN: Final = frozenset({dict, list, type(None)})
#: `isinstance(value, msgspec.Struct)` costs six times as much.
_STRUCT: Final = type(msgspec.Struct)
#: Each level doubles what is made at start-up (1 ms); items are five deep, tools six.
_SIMPLE_DEPTH: Final = 6

T = TypeVar("T")


def _simple(depth: int) -> Any:
    """The type of plain data without bytes, whose keys are text, so deep at most."""
    level: Any = None | bool | int | float | str
    for _ in range(depth):
        level = None | bool | int | float | str | list[level] | dict[str, level]
    return level


#: Reads what msgpack would read as the same.
_SIMPLE: Final[msgspec.msgpack.Decoder[Any]] = msgspec.msgpack.Decoder(_simple(_SIMPLE_DEPTH))


def pack(value: object) -> bytes:
    """Pack plain data or a message (as a map)."""
    try:
        kind = type(value)
        if type(kind) is _STRUCT or (kind not in _PLAIN and dataclasses.is_dataclass(value)):
            return _ENCODER.encode(value)
        packed: bytes = msgpack.Packer().pack(value)
        return packed
    except (TypeError, ValueError, OverflowError, RecursionError) as e:
        raise Undecodable(f"cannot be packed: {e}") from e


def pack_json(value: object) -> bytes:
    """`pack` for what was read from JSON, at a third of its cost: no check finds anything there."""
    try:
        return _ENCODER.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as e:
        raise Undecodable(f"cannot be packed: {e}") from e


def unpack(body: bytes) -> Any:
    """Unpack plain data within the limits. Raises Undecodable or TooLarge."""
    # where no array or map can claim much memory (as in `read`)
    if 0xDD not in body and 0xDF not in body and len(body) <= MAX_BODY_BYTES:
        try:
            return _SIMPLE.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            pass  # odd or broken
    value = _unpack(body)
    if not (_is_shallow(body) or _shallow(value, MAX_DEPTH)):
        raise Undecodable(f"nested deeper than {MAX_DEPTH}")
    return value


def unpack_each(bodies: Sequence[bytes]) -> list[Any]:
    """Unpack values that were packed one by one. Raises Undecodable or TooLarge."""
    return [unpack(body) for body in bodies]


def _unpack(body: bytes) -> Any:
    if len(body) > MAX_UNPACKED_BYTES:
        raise TooLarge(f"{len(body)} bytes, at most {MAX_UNPACKED_BYTES} are read")
    try:
        return msgpack.unpackb(
            body,
            raw=False,
            use_list=True,
            strict_map_key=True,
            max_array_len=min(MAX_ARRAY, len(body)),
            max_map_len=min(MAX_MAP, len(body)),
            max_ext_len=0,
        )
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as e:
        raise Undecodable(f"not msgpack within limits: {str(e) or type(e).__name__}") from e


def encode(message: object, *, spare_bytes: int = 0, compress: bool = True) -> bytes:
    """A message's body for the wire. Raises TooLarge above MAX_BODY_BYTES less `spare_bytes`."""
    body = pack(message)
    if compress and len(body) > COMPRESS_ABOVE_BYTES:
        body = _compressor().compress(body)
    if len(body) > MAX_BODY_BYTES - spare_bytes:
        raise TooLarge(
            f"{type(message).__name__} of {len(body)} bytes, at most {MAX_BODY_BYTES} can be sent"
        )
    return body


def _kind_of(type_: type[object]) -> str:
    """A message type's name on the wire, `modelcall.v1`."""
    return f"{type_.__name__.lower()}.v{SCHEMA_VERSION}"


kind_of: Final[Callable[[Any], str]] = functools.cache(_kind_of)


def decode(type_: type[T], body: bytes, kind: str | None = None) -> T:
    """Read one message. `kind`, where known, must be ours: another version is never guessed at.

    Raises: TooLarge, Undecodable, with a reason fit for a dead letter.
    """
    if kind is not None and kind != kind_of(type_):
        raise Undecodable(f"message type is {kind!r}, expected {kind_of(type_)!r}")
    if len(body) > MAX_BODY_BYTES:
        raise TooLarge(f"{len(body)} bytes, at most {MAX_BODY_BYTES} are read")
    return read(type_, decompress(body))


def digest(*parts: bytes) -> bytes:
    """16 bytes that identify these parts in this order."""
    return hashlib.blake2b(_framed(parts), digest_size=16).digest()


def sha256(*parts: bytes) -> bytes:
    """32 bytes that identify these parts in this order: where rows show them, or they are large
    (most processors have it in hardware)."""
    return hashlib.sha256(_framed(parts)).digest()


def _framed(parts: Sequence[bytes]) -> bytes:
    pieces: list[bytes] = []
    for part in parts:
        pieces += (_LENGTH.pack(len(part)), part)
    return b"".join(pieces)


def read(type_: type[T], packed: bytes) -> T:
    """Unpack and validate a value that was packed with `pack`. Raises Undecodable, TooLarge."""
    try:
        # where no array can claim more than 65,535 elements, for which msgspec may take half a
        # megabyte per level, of which types have few; sought as a number: to look for `bytes`
        # raises and drops a TypeError first, five times the cost
        if 0xDD not in packed and len(packed) <= MAX_BODY_BYTES:
            decoded: T = _decoder(type_).decode(packed)
            return decoded
        return msgspec.convert(_unpack(packed), type_)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        raise Undecodable(f"not a {type_.__name__}: {e}") from e


@functools.cache
def _compressor() -> zstandard.ZstdCompressor:
    # Finds what repeats (prompts that contain each other, conversations) and leaves the rest as it
    # is: token arrays would shrink by a sixth for ten times the CPU, there and at each reader.
    return zstandard.ZstdCompressor(level=-1, write_content_size=True)


def is_compressed(body: bytes) -> bool:
    """Whether it was compressed for the wire: no packed message begins so."""
    return body[:4] == _ZSTD_MAGIC


def decompress(body: bytes) -> bytes:
    """A body's packed message, as it was before it was compressed for the wire."""
    if not is_compressed(body):
        return body
    try:
        size = zstandard.get_frame_parameters(body).content_size
        if size > MAX_UNPACKED_BYTES:  # an unknown size reads as the largest number
            raise TooLarge(f"unpacks to {size} bytes, at most {MAX_UNPACKED_BYTES} are read")
        return zstandard.ZstdDecompressor().decompress(body, max_output_size=size or 1)
    except zstandard.ZstdError as e:
        raise Undecodable(f"not zstd: {e}") from e


def _is_shallow(body: bytes) -> bool:
    """Whether it has too few bytes that could begin an array or map to be nested deeply."""
    return len(body.translate(None, _NO_CONTAINERS)) <= MAX_DEPTH


def _shallow(value: object, depth: int) -> bool:
    if isinstance(value, dict):
        return depth > 0 and all(_shallow(v, depth - 1) for v in value.values())
    if isinstance(value, list):
        return depth > 0 and all(_shallow(v, depth - 1) for v in value)
    return True
