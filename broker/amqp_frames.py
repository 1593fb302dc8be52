"""The few AMQP 0-9-1 frames of the hot path as bytes: publish, deliver, confirm, settle.

pamqp builds and reads every other frame. These are written by hand because they are most of what
a message costs in Python: about 5 us here, 50 us through objects.
"""

import functools
import struct
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from pamqp import decode, encode

from broker.base import Header, Outgoing

METHOD: Final = 1
HEADER: Final = 2
BODY: Final = 3
END: Final = b"\xce"
#: A frame's type, channel and size before its payload, and its end mark.
FRAME_OVERHEAD: Final = 8

# Methods as class << 16 | method.
CONNECTION_BLOCKED: Final = 0x000A003C
CONNECTION_UNBLOCKED: Final = 0x000A003D
CHANNEL_FLOW: Final = 0x00140014
CHANNEL_CLOSE: Final = 0x00140028
BASIC_CANCEL: Final = 0x003C001E
BASIC_RETURN: Final = 0x003C0032
BASIC_DELIVER: Final = 0x003C003C
BASIC_ACK: Final = 0x003C0050
BASIC_NACK: Final = 0x003C0078

_BASIC: Final = 60
_FRAME: Final = struct.Struct(">BHI")
_METHOD: Final = struct.Struct(">I")
_TAG: Final = struct.Struct(">QB")
_CONTENT: Final = struct.Struct(">HHQH")
_HEADER: Final = struct.Struct(">BHIHHQH")
_SETTLE: Final = struct.Struct(">BHIIQBB")

_HAS_HEADERS: Final = 1 << 13
_HAS_MODE: Final = 1 << 12
_HAS_EXPIRATION: Final = 1 << 8
_HAS_ID: Final = 1 << 7
_HAS_TYPE: Final = 1 << 5

frame_head = _FRAME.unpack_from
"""(type, channel, size) at an offset."""


class Properties(NamedTuple):
    """What we read of a message's properties."""

    kind: str
    headers: Mapping[str, Header]
    message_id: str


def method_of(payload: bytes) -> int:
    """Which method a method frame holds."""
    method: int = _METHOD.unpack_from(payload)[0]
    return method


def method_frame(channel: int, payload: bytes) -> bytes:
    """The whole frame again, as pamqp reads it."""
    return _FRAME.pack(METHOD, channel, len(payload)) + payload + END


def publish(
    channel: int, message: Outgoing, message_id: bytes, *, mandatory: bool, frame_max: int
) -> list[bytes]:
    """A whole message as the pieces of one write. Nothing may come between them on its channel."""
    body, room = message.body, frame_max - FRAME_OVERHEAD
    method = _publish_frame(channel, message.exchange, message.key, mandatory)
    header = _header_frame(channel, message, message_id)
    if 0 < len(body) <= room:
        return [method, header, _FRAME.pack(BODY, channel, len(body)), body, END]
    pieces = [method, header]
    for start in range(0, len(body), room):
        part = body[start : start + room]
        pieces += (_FRAME.pack(BODY, channel, len(part)), part, END)
    return pieces


def ack(channel: int, tag: int, *, multiple: bool = False) -> bytes:
    """Done: this delivery, or all up to it."""
    return _SETTLE.pack(METHOD, channel, 13, BASIC_ACK, tag, multiple, 0xCE)


def give_back(channel: int, tag: int) -> bytes:
    """Not done: back to its queue."""
    return _SETTLE.pack(METHOD, channel, 13, BASIC_NACK, tag, 2, 0xCE)


def confirmation(payload: bytes) -> tuple[int, bool]:
    """(delivery tag, multiple) of an ack or nack from the broker."""
    tag, bits = _TAG.unpack_from(payload, 4)
    return tag, bool(bits & 1)


def delivery(payload: bytes) -> tuple[int, bool]:
    """(delivery tag, redelivered) of a Basic.Deliver."""
    tag, redelivered = _TAG.unpack_from(payload, 5 + payload[4])  # after the consumer tag
    return tag, bool(redelivered & 1)


def address(payload: bytes) -> tuple[str, str]:
    """(exchange, routing key) of a Basic.Deliver."""
    at = 5 + payload[4] + 9
    key_at = at + 1 + payload[at]
    exchange, key = payload[at + 1 : key_at], payload[key_at + 1 : key_at + 1 + payload[key_at]]
    return exchange.decode(), key.decode()


def body_size(content: bytes) -> int:
    """How many bytes follow a content header."""
    size: int = _CONTENT.unpack_from(content)[2]
    return size


def properties(content: bytes) -> Properties:
    """Read a content header. Raises ValueError on a malformed one."""
    try:
        return _properties(content)
    except (IndexError, struct.error, UnicodeDecodeError) as e:
        raise ValueError(f"malformed content header: {e}") from e


def _properties(content: bytes) -> Properties:
    flags: int = _CONTENT.unpack_from(content)[3]
    at, kind, message_id = 14, "", ""
    if flags == _HAS_MODE | _HAS_TYPE:  # a reply, or what no publisher waits for
        return Properties(_text(content, 15), {}, "")
    if flags == _HAS_MODE | _HAS_ID | _HAS_TYPE:
        return Properties(_text(content, 16 + content[15]), {}, _text(content, 15))
    headers: Mapping[str, Header] = {}
    for bit in range(15, 2, -1):
        if not flags >> bit & 1:
            continue
        if bit == 13:
            read, table = decode.field_table(content[at:])
            headers = _plain(table)
            at += read
        elif bit in {12, 11}:  # delivery mode, priority
            at += 1
        elif bit == 6:  # timestamp
            at += 8
        else:
            text = content[at + 1 : at + 1 + content[at]]
            at += 1 + content[at]
            if bit == 5:
                kind = text.decode()
            elif bit == 7:
                message_id = text.decode()
    return Properties(kind, headers, message_id)


def _plain(table: Mapping[str, Any]) -> Mapping[str, Header]:
    return {k: v for k, v in table.items() if isinstance(v, (str, int))}


def _text(content: bytes, at: int) -> str:
    return content[at + 1 : at + 1 + content[at]].decode()


@functools.lru_cache(4096)
def _publish_frame(channel: int, exchange: str, key: str, mandatory: bool) -> bytes:
    name, route = exchange.encode(), key.encode()
    if len(name) > 255 or len(route) > 255:
        raise ValueError(f"exchange and routing key are at most 255 bytes: {exchange} {key}")
    words = bytes([len(name)]) + name + bytes([len(route)]) + route
    method = b"\x00\x3c\x00\x28\x00\x00" + words + bytes([mandatory])
    return _FRAME.pack(METHOD, channel, len(method)) + method + END


def _header_frame(channel: int, message: Outgoing, message_id: bytes) -> bytes:
    flags, table, expiration = _HAS_MODE | _HAS_TYPE, b"", b""
    if message.headers:
        flags |= _HAS_HEADERS
        table = encode.field_table(dict(message.headers))
    if message.expires_s is not None:
        flags |= _HAS_EXPIRATION
        expiration = _short(b"%d" % max(message.expires_s * 1000, 0))
    if message_id:
        flags |= _HAS_ID
        message_id = _short(message_id)
    mode = 2 if message.persistent else 1
    properties = b"%b%c%b%b%b\xce" % (table, mode, expiration, message_id, _type(message.kind))
    size = 13 + len(properties)
    head = _HEADER.pack(HEADER, channel, size, _BASIC, 0, len(message.body), flags)
    return head + properties


@functools.lru_cache(256)
def _type(kind: str) -> bytes:
    return _short(kind.encode())


def _short(text: bytes) -> bytes:
    return b"%c%b" % (len(text), text)
