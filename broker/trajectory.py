"""Reading trajectories: a forest of calls becomes conversations, transcripts and training segments.

Pure functions of what the agent recorded; sinks write rows from them, trainers get arrays. Each
model call names its parent and how much of the parent's conversation it kept, so a branch is the
chain of parents from its first call on. A record that contradicts itself is Undecodable.
"""

import sys
from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from broker import codec
from broker.errors import Undecodable
from broker.messages import CallRecord, ModelResult, Tokens, ToolResult, Trajectory

Item = dict[str, Any]
"""A Responses API item."""
_ITEM: Final = frozenset({dict})


class Node(msgspec.Struct, frozen=True):
    """One finished call with its result unpacked."""

    record: CallRecord
    result: ModelResult | ToolResult
    output: tuple[Item, ...]
    """What the model wrote; empty for tools and failed calls."""


class Entry(msgspec.Struct, frozen=True):
    """One item of a transcript and who wrote it."""

    item: Item
    call: str | None
    """Path of the model call that sampled it; None for what the model was given."""


class Segment(msgspec.Struct, frozen=True):
    """One training sequence: every later call's prompt extends all tokens before it.

    All three arrays have one length. `mask` is 1 where the policy sampled the token and 0 where
    it was given it; `logprobs` are 0.0 where the mask is 0.
    """

    ids: memoryview
    """int32, shape [tokens]."""
    mask: memoryview
    """uint8, shape [tokens]."""
    logprobs: "memoryview[float]"
    """float32, shape [tokens]."""
    prompt_tokens: int
    """Length of the first call's prompt."""


def read_call(packed: bytes) -> Node:
    """Unpack a CallRecord and its result. Raises Undecodable, TooLarge."""
    record = codec.read(CallRecord, packed)
    if record.kind != "model":
        return Node(record, codec.read(ToolResult, record.result), ())
    result = codec.read(ModelResult, record.result)
    return Node(record, result, tuple(read_items(result.items)))


def read_items(packed: bytes) -> list[Item]:
    """Unpack a list of items; nothing for empty bytes."""
    items = codec.unpack(packed) if packed else []
    if not isinstance(items, list) or not _ITEM.issuperset(map(type, items)):
        raise Undecodable("not a list of items")
    return items


def read_item(packed: bytes) -> Item:
    """Unpack one item."""
    item = codec.unpack(packed)
    if not isinstance(item, dict):
        raise Undecodable("not an item")
    return item


def _items(packed: Sequence[bytes]) -> list[Item]:
    """Unpack items that were packed one by one."""
    items = codec.unpack_each(packed) if packed else []
    if not _ITEM.issuperset(map(type, items)):
        raise Undecodable("not an item")
    return items


def forest(packed_calls: Iterable[bytes]) -> dict[str, Node]:
    """All calls by path, in the order they were begun (`Trajectory.calls`, `Verdict.calls`)."""
    return {node.record.path: node for node in map(read_call, packed_calls)}


def chain(nodes: Mapping[str, Node], path: str) -> list[Node]:
    """The model calls of the branch that ends with `path`, first call first."""
    found: list[Node] = []
    at: str | None = path
    while at is not None:
        node = nodes.get(at)
        if node is None or not isinstance(node.result, ModelResult):
            raise Undecodable(f"no model call at path {at!r}")
        if len(found) == len(nodes):
            raise Undecodable(f"the branch that ends at {path!r} has no beginning")
        found.append(node)
        at = node.record.parent
    return found[::-1]


def branch_ends(nodes: Mapping[str, Node]) -> list[str]:
    """Paths of the model calls that no other call goes on from: one per branch."""
    parents = {node.record.parent for node in nodes.values()}
    return [p for p, n in nodes.items() if n.record.kind == "model" and p not in parents]


def call_input(nodes: Mapping[str, Node], path: str) -> list[Item]:
    """The whole conversation that the model call at `path` was asked to continue."""
    kept: list[Item] = []
    for node in chain(nodes, path):
        shared = node.record.shared_items
        if not 0 <= shared <= len(kept):
            raise Undecodable(f"call {node.record.path!r} keeps {shared} of {len(kept)} items")
        given = kept[:shared] + _items(node.record.new_items)
        kept = [*given, *node.output]
    return given


def conversation(nodes: Mapping[str, Node], path: str) -> list[Item]:
    """What the model call at `path` was given, then what it wrote."""
    return [*call_input(nodes, path), *nodes[path].output]


def transcript(
    nodes: Mapping[str, Node], path: str | None, tail_items: Sequence[bytes] = ()
) -> list[Entry]:
    """All that was said on the branch that ends at `path`, in order, then `tail_items`.

    Unlike `conversation` it keeps what a later call left out (a trimmed history), so that every
    sampled token of the branch is in it. The main branch's first `prompt_items` are the prompt.
    """
    said: list[Entry] = []
    for node in chain(nodes, path) if path is not None else ():
        said += [Entry(item, None) for item in _items(node.record.new_items)]
        said += [Entry(item, node.record.path) for item in node.output]
    return said + [Entry(item, None) for item in _items(tail_items)]


def main_transcript(trajectory: Trajectory, nodes: Mapping[str, Node]) -> list[Entry]:
    """The main branch's transcript; its first `trajectory.prompt_items` are the prompt."""
    return transcript(nodes, trajectory.main, trajectory.tail_items)


def main_items(trajectory: Trajectory, nodes: Mapping[str, Node]) -> list[Item]:
    """The same without saying who wrote each."""
    said: list[Item] = []
    for node in chain(nodes, trajectory.main) if trajectory.main is not None else ():
        said += _items(node.record.new_items)
        said += node.output
    return said + _items(trajectory.tail_items)


def segments(calls: Iterable[Tokens]) -> list[Segment]:
    """Training sequences of one branch's calls, in order; more than one where history was cut.

    The rule is trainers.md's, section 2: a call whose prompt does not extend every token before
    it begins a new sequence. Nothing is tokenised again.
    """
    built: list[_Growing] = []
    for tokens in calls:
        if not built or not tokens.prompt_ids.startswith(built[-1].ids):
            built.append(_Growing(len(tokens.prompt_ids) // 4))
        built[-1].add(tokens)
    return [growing.segment() for growing in built]


def branch_tokens(nodes: Mapping[str, Node], path: str) -> list[Tokens]:
    """What the engine recorded for the calls of a branch; calls without tokens are left out."""
    results = (node.result for node in chain(nodes, path))
    return [r.tokens for r in results if isinstance(r, ModelResult) and r.tokens is not None]


def ints(packed: bytes) -> memoryview:
    """A little-endian int32 array as it stands on the wire, as native integers."""
    return _native(packed).cast("i")


def floats(packed: bytes) -> "memoryview[float]":
    """A little-endian float32 array as it stands on the wire, as native floats."""
    return _native(packed).cast("f")


class _Growing:
    """A segment that calls are being added to, as wire bytes."""

    def __init__(self, prompt_tokens: int) -> None:
        self.ids = bytearray()
        self._mask = bytearray()
        self._logprobs = bytearray()
        self._prompt_tokens = prompt_tokens

    def add(self, tokens: Tokens) -> None:
        given = tokens.prompt_ids[len(self.ids) :]
        sampled = tokens.generated_ids
        if len(tokens.prompt_ids) % 4 or len(sampled) % 4 or len(sampled) != len(tokens.logprobs):
            raise Undecodable("token arrays are not aligned")
        self.ids += given + sampled
        self._mask += bytes(len(given) // 4) + b"\x01" * (len(sampled) // 4)
        self._logprobs += bytes(len(given)) + tokens.logprobs

    def segment(self) -> Segment:
        return Segment(
            ids=ints(bytes(self.ids)),
            mask=memoryview(bytes(self._mask)),
            logprobs=floats(bytes(self._logprobs)),
            prompt_tokens=self._prompt_tokens,
        )


def _native(packed: bytes) -> memoryview:
    if len(packed) % 4:
        raise Undecodable("a token array of 4-byte numbers has a rest")
    if sys.byteorder == "little":
        return memoryview(packed)
    numbers = array("I", packed)
    numbers.byteswap()
    return memoryview(numbers.tobytes())


__all__ = [
    "Entry",
    "Item",
    "Node",
    "Segment",
    "branch_ends",
    "branch_tokens",
    "call_input",
    "chain",
    "conversation",
    "floats",
    "forest",
    "ints",
    "main_items",
    "main_transcript",
    "read_call",
    "read_item",
    "read_items",
    "segments",
    "transcript",
]
