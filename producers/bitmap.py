"""Sets of task indices as bits, in the order of Redis SETBIT: bit 7 of byte 0 is index 0.

Ten million tasks are 1.25 MB. `Runs.committed` speaks this form.
"""

from collections.abc import Iterator


def has(bits: bytes | bytearray, index: int) -> bool:
    """Whether `index` is in the set; whatever lies behind its end is not."""
    byte, bit = divmod(index, 8)
    return byte < len(bits) and bool(bits[byte] & (0x80 >> bit))


def add(bits: bytearray, index: int) -> None:
    """Put `index` into the set, which grows as needed."""
    byte, bit = divmod(index, 8)
    if byte >= len(bits):
        bits.extend(bytes(byte + 1 - len(bits)))
    bits[byte] |= 0x80 >> bit


def without(bits: bytes, others: bytes) -> bytes:
    """What is in the one set and not in the other."""
    mask = int.from_bytes(others[: len(bits)].ljust(len(bits), b"\0"), "big")
    return (int.from_bytes(bits, "big") & ~mask).to_bytes(len(bits), "big")


def indices(bits: bytes) -> Iterator[int]:
    """The indices in the set, rising."""
    for at, byte in enumerate(bits):
        if byte:
            yield from (8 * at + bit for bit in range(8) if byte & (0x80 >> bit))


def count(bits: bytes | bytearray) -> int:
    """How many indices are in the set."""
    return int.from_bytes(bits, "big").bit_count()
