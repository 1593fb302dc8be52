"""How a rollout's state becomes bytes and typed Python again: JSON, as its author annotated it."""

import reprlib
from dataclasses import dataclass
from typing import Any

import pydantic
from pydantic_core import PydanticSerializationError

from warren.checks import Function, InvalidEnvironment, type_name, where


@dataclass(frozen=True, slots=True)
class StateCodec:
    """Packs and unpacks states of one type."""

    adapter: pydantic.TypeAdapter[Any]
    made_by: str

    def pack(self, state: object) -> bytes:
        """Raises ValueError where it would not come back as it is: never a silent change."""
        try:
            packed = self.adapter.dump_json(state, warnings="error")
            restored = self.adapter.validate_json(packed)
        except (PydanticSerializationError, ValueError, TypeError, RecursionError) as e:
            raise ValueError(f"the state is not what {self.made_by} is annotated with: {e}") from e
        if not _same(state, restored):
            raise ValueError(
                f"the state can't be stored as {self.made_by} is annotated: "
                f"{reprlib.repr(state)} would come back as {reprlib.repr(restored)}"
            )
        return packed

    def unpack(self, packed: bytes) -> object:
        """Raises ValueError where the bytes are of another version of the type."""
        return self.adapter.validate_json(packed)


def state_codec(function: Function, hint: Any) -> StateCodec:
    """The codec for what `function`, a setup, returns. Raises InvalidEnvironment."""
    if hint in (Any, object, None, type(None)):
        raise InvalidEnvironment(
            f"{where(function)}: says nothing about its state with `-> {_word(hint)}`; name a "
            "pydantic model, a dataclass or JSON data, for example `-> dict[str, int]`"
        )
    try:
        adapter: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(hint)
        adapter.json_schema(mode="serialization")
    except (pydantic.errors.PydanticUserError, TypeError) as e:
        raise InvalidEnvironment(
            f"{where(function)}: its state `{type_name(hint)}` can't be stored after each call; "
            f"use a pydantic model, a dataclass or plain JSON data ({_first_line(e)})"
        ) from e
    return StateCodec(adapter, where(function))


def _first_line(error: Exception) -> str:
    """Without pydantic's advice about its own settings."""
    return str(error).partition(". Set `arbitrary")[0].splitlines()[0]


def _word(hint: Any) -> str:
    return getattr(hint, "__name__", str(hint)).replace("NoneType", "None")


def _same(state: object, restored: object) -> bool:
    """Equal, tuples in untyped JSON data aside; NaN equals itself."""
    if isinstance(state, list | tuple) and isinstance(restored, list | tuple):
        pairs = zip(state, restored, strict=False)
        return len(state) == len(restored) and all(_same(a, b) for a, b in pairs)
    if isinstance(state, dict) and isinstance(restored, dict):
        same_keys = state.keys() == restored.keys()
        return same_keys and all(_same(v, restored[k]) for k, v in state.items())
    return state == restored or repr(state) == repr(restored)
