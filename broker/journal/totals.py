"""What the three `Runs` share: sums of totals, bitmaps, and their text form in a store."""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

from broker.journal.runs import RunInfo, Totals


def add_totals(parts: Iterable[Totals]) -> Totals:
    """The sum over shards."""
    sums: dict[str, Any] = dataclasses.asdict(Totals()) | {"failed_by_kind": Counter[str]()}
    for part in parts:
        for name in sums:
            if name == "failed_by_kind":
                sums[name].update(part.failed_by_kind)
            else:
                sums[name] += getattr(part, name)
    return Totals(**sums | {"failed_by_kind": dict(sums["failed_by_kind"])})


def bitmap(indices: Iterable[int]) -> bytes:
    """Bit 7 of byte 0 is index 0, as Redis SETBIT has it; as long as the highest index needs."""
    bits = bytearray()
    for index in indices:
        byte, bit = divmod(index, 8)
        if byte >= len(bits):
            bits.extend(bytes(byte + 1 - len(bits)))
        bits[byte] |= 0x80 >> bit
    return bytes(bits)


def pack_totals(totals: Totals) -> str:
    """JSON, which people can read in the store."""
    return json.dumps(dataclasses.asdict(totals))


def unpack_totals(text: str | bytes) -> Totals:
    """Undo `pack_totals`; fields that a newer version wrote are left out."""
    return Totals(**_known(Totals, json.loads(text)))


def pack_info(info: RunInfo) -> str:
    """JSON, which people can read in the store."""
    return json.dumps(dataclasses.asdict(info))


def unpack_info(text: str | bytes) -> RunInfo:
    """Undo `pack_info`; fields that a newer version wrote are left out."""
    return RunInfo(**_known(RunInfo, json.loads(text)))


def _known(kind: type[Totals] | type[RunInfo], values: dict[str, Any]) -> dict[str, Any]:
    names = {field.name for field in dataclasses.fields(kind)}
    return {name: value for name, value in values.items() if name in names}
