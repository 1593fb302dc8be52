"""A conversation that grows: every item is packed and hashed once, however often it is sent."""

from collections.abc import Iterable
from hashlib import blake2b
from typing import Final

from broker import codec
from workers.spec import Item

_EMPTY: Final = b""


class Conversation:
    """Responses items in order; append-only, so that history is never encoded again.

    `digests[n]` identifies the first `n` items: two conversations share a prefix exactly when they
    share its digest.
    """

    def __init__(self, items: Iterable[Item] = ()) -> None:
        self._items: list[Item] = []
        self.packed: list[bytes] = []
        self.digests: list[bytes] = [_EMPTY]
        self.extend(items)

    @property
    def items(self) -> tuple[Item, ...]:
        """The items so far. Treat them as frozen: what was sent can't be changed."""
        return tuple(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def append(self, item: Item) -> None:
        """Add one item. Raises Undecodable where it is not plain data."""
        packed = codec.pack(item)
        self._items.append(item)
        self.packed.append(packed)
        self.digests.append(blake2b(self.digests[-1] + packed, digest_size=16).digest())

    def extend(self, items: Iterable[Item]) -> None:
        """Add items in order."""
        for item in items:
            self.append(item)

    def say(self, text: str, role: str = "user") -> None:
        """Add a message."""
        self.append({"type": "message", "role": role, "content": text})

    def fork(self) -> "Conversation":
        """A copy that grows on its own."""
        copy = Conversation()
        copy._items = self._items.copy()
        copy.packed = self.packed.copy()
        copy.digests = self.digests.copy()
        return copy
