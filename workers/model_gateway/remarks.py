"""What is said in conversations, kept for the calls that repeat it.

Each call of a rollout carries all that was said before. An item is unpacked once and put into a
chat server's words once, for all calls that have it; their bodies are joined from these. What is
sent is the same, byte by byte, as if nothing were kept, and so are the errors.
"""

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Final

import msgspec

from broker import codec
from broker.errors import Undecodable
from workers.model_gateway.conversion import (
    Spoken,
    as_items,
    assistant_message,
    in_chat_words,
    other_message,
    spoken,
)

#: So many remarks are kept, and no more than twice as many: 5 to 10 MB as a rule.
KEPT: Final = 8192
#: Of at most so many packed bytes each, and so are the turns whose words are.
_LARGE_BYTES: Final = 2048
#: What quoting makes longer than that is not kept.
_LARGE_TEXT_BYTES: Final = 2 * _LARGE_BYTES

_encode: Final = msgspec.json.Encoder().encode


class Remark:
    """One packed input item. Raises Undecodable."""

    __slots__ = ("_before", "_said", "_turn", "call_ids", "closes", "opens", "packed", "text")

    def __init__(self, packed: bytes) -> None:
        self.packed = packed
        self._said: Sequence[Spoken] | None
        self._said = said = _said_in(packed)
        kind, by_assistant, item = said[0]
        call_id = item.get("call_id")
        self.call_ids: tuple[str, ...] = (str(call_id),) if call_id else ()
        self.opens = self.closes = kind if by_assistant else ""
        """The type of the first item that the assistant says in it, and of the last."""
        if len(said) > 1:  # then they are the assistant's
            self.closes = said[-1][0]
            self.call_ids = tuple(str(i["call_id"]) for _, _, i in said if i.get("call_id"))
        self.text = self._turn = b""
        """`text`: its chat message in a turn of its own, as JSON, where that is kept."""
        self._before: tuple[Remark, ...] = ()

    @property
    def said(self) -> Sequence[Spoken]:
        """Its items, which other calls have too: frozen."""
        return _said_in(self.packed) if self._said is None else self._said

    def alone(self) -> bytes:
        """Its chat message in a turn of its own, as JSON. Raises UNSENDABLE."""
        said = self._said or self.said
        text = _encode(assistant_message(said) if self.opens else other_message(said[0]))
        if len(self.packed) <= _LARGE_BYTES and len(text) <= _LARGE_TEXT_BYTES:
            self.text, self._said = text, None  # hardly anybody asks for that again
        return text

    def after(self, before: "tuple[Remark, ...]") -> bytes:
        """The chat message of a turn that this one ends, as JSON. Raises UNSENDABLE.

        Kept for one turn: hardly any remark ends several.
        """
        if before == self._before:
            return self._turn
        turn = (*before, self)
        text = _encode(assistant_message([said for remark in turn for said in remark.said]))
        small = sum(len(remark.packed) for remark in turn) <= _LARGE_BYTES
        if small and len(text) <= _LARGE_TEXT_BYTES:
            self._before, self._turn = before, text
            for remark in turn:
                remark._said = None
        return text


def _said_in(packed: bytes) -> Sequence[Spoken]:
    """One item, or what a chat message says in several."""
    item = codec.unpack(packed)
    if type(item) is not dict:
        raise Undecodable("an input item is not a map")
    if not in_chat_words(item):
        return (spoken(item),)
    return list(map(spoken, as_items([item])))


#: Not said, after all that is.
_END: Final = Remark(codec.pack({"type": "end"}))


class Remarks:
    """The remarks of many calls, each made once while it is asked for now and then."""

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._new: dict[bytes, Remark] = {}
        self._old: dict[bytes, Remark] = {}
        """What was asked for before the new ones."""

    def of(self, packed: Sequence[bytes]) -> Sequence[Remark]:
        """Those of one call's input. Raises Undecodable."""
        found = list(map(self._new.get, packed))
        if all(found):
            return found  # type: ignore[return-value]
        return [remark or self._made(one) for remark, one in zip(found, packed, strict=True)]

    def _made(self, packed: bytes) -> Remark:
        remark = self._old.get(packed) or Remark(packed)
        if len(packed) <= _LARGE_BYTES:
            if len(self._new) >= self._kept:
                self._old, self._new = self._new, {}
            self._new[packed] = remark
        return remark


def call_ids(remarks: Iterable[Remark]) -> set[str]:
    """Of the tool calls that these are about."""
    return {*chain.from_iterable(remark.call_ids for remark in remarks)}


def chat_messages(remarks: Sequence[Remark]) -> msgspec.Raw:
    """What `conversion.messages_of` makes of their items, as JSON. Raises UNSENDABLE."""
    texts: list[bytes] = []
    turn: tuple[Remark, ...] = ()
    for remark, following in zip(remarks, (*remarks[1:], _END), strict=False):
        opens, closes = following.opens, remark.closes
        if opens and closes and not opens == closes == "message":
            turn = (*turn, remark)  # what follows is of the same message
        elif turn:
            texts.append(remark.after(turn))
            turn = ()
        else:
            texts.append(remark.text or remark.alone())
    return msgspec.Raw(b"[%b]" % b",".join(texts))
