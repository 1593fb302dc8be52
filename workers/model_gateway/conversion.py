"""Responses items inside, Chat Completions messages at the edge: one to the other and back.

Nothing that both can say is lost on the way: roles, text, images and files by reference, tool
calls with their arguments as the model wrote them (garbage included), tool outputs, reasoning,
refusals. `content` is never null: chat templates choke on it. What Chat Completions cannot say
(hosted tools, item references) raises `Unconvertible`, never vanishes.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from broker.errors import WireError
from workers.spec import Item

ChatMessage = dict[str, Any]
Spoken = tuple[str, bool, Item]
"""An item's type, which messages need not name; whether the assistant says it; the item."""


class Unconvertible(ValueError):
    """An item that Chat Completions has no words for."""


#: What sending hostile items can raise, and what reading hostile answers.
UNSENDABLE: Final = (Unconvertible, AttributeError, KeyError, TypeError, ValueError)
MALFORMED: Final = (*UNSENDABLE, OverflowError, RecursionError, WireError)


@dataclass(frozen=True, slots=True)
class Dialect:
    """What a server's Chat Completions calls things."""

    reasoning_key: str | None = "reasoning_content"
    """Where an assistant's reasoning goes; None: the server refuses it, leave it out."""
    developer_role: bool = False
    """Whether it knows `developer`; else that is said as `system`."""


#: vLLM, SGLang, llama.cpp and kin: reasoning is part of the template's input.
OPEN_SERVER: Final = Dialect()
#: OpenAI's own: reasoning is not accepted back, developer messages are.
OPENAI: Final = Dialect(reasoning_key=None, developer_role=True)
#: Beside its messages, what a model says.
_OF_A_TURN: Final = ("function_call", "reasoning")
#: For round trips: nothing is left out.
LOSSLESS: Final = Dialect(developer_role=True)


def messages_of(items: Iterable[Item], dialect: Dialect = OPEN_SERVER) -> list[ChatMessage]:
    """The conversation as chat messages. Raises Unconvertible."""
    messages: list[ChatMessage] = []
    turn: list[Spoken] = []
    last = ""
    for item in items:
        kind, by_assistant, _ = said = spoken(item)
        if turn and (not by_assistant or kind == last == "message"):
            # consecutive assistant items come from one model call, except two messages in a row
            messages.append(assistant_message(turn, dialect))
            turn = []
        last = kind
        if by_assistant:
            turn.append(said)
        else:
            messages.append(other_message(said, dialect))
    if turn:
        messages.append(assistant_message(turn, dialect))
    return messages


def spoken(item: Item) -> Spoken:
    """The item, looked at."""
    kind = str(item.get("type") or ("message" if "role" in item else ""))
    said = kind in _OF_A_TURN or (kind == "message" and item.get("role") == "assistant")
    return kind, said, item


def assistant_message(turn: Iterable[Spoken], dialect: Dialect = OPEN_SERVER) -> ChatMessage:
    """The one that these items make together. Raises UNSENDABLE."""
    text = refusal = ""
    thoughts, calls = [], []
    for kind, _, item in turn:
        match kind:
            case "function_call":
                calls.append(_tool_call(item))
            case "reasoning":
                thoughts.append(reasoning_text(item))
            case _:
                for part in _parts(item.get("content")):
                    if part.get("type") == "refusal":
                        refusal += str(part["refusal"])
                    else:
                        text += _text(part)
    message: ChatMessage = {"role": "assistant", "content": text}
    if refusal:
        message["refusal"] = refusal
    if dialect.reasoning_key is not None and any(thoughts):
        message[dialect.reasoning_key] = "\n".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    return message


def _tool_call(item: Item) -> dict[str, Any]:
    function = {"name": item["name"], "arguments": item["arguments"]}
    return {"id": item["call_id"], "type": "function", "function": function}


def reasoning_text(item: Item) -> str:
    """The thoughts in a reasoning item, or their summary where the thoughts are withheld."""
    parts = item.get("content") or item.get("summary") or []
    return "\n".join(str(part.get("text", "")) for part in parts)


def other_message(said: Spoken, dialect: Dialect = OPEN_SERVER) -> ChatMessage:
    """What somebody else says in an item. Raises UNSENDABLE."""
    kind, _, item = said
    match kind:
        case "message":
            role = str(item.get("role"))
            if role == "developer" and not dialect.developer_role:
                role = "system"
            return {"role": role, "content": _chat_content(item.get("content"))}
        case "function_call_output":
            return {
                "role": "tool",
                "tool_call_id": item["call_id"],
                "content": _chat_content(item.get("output")),
            }
        case _:
            raise Unconvertible(f"items of type {kind!r} cannot be sent over Chat Completions")


def _parts(content: object) -> list[dict[str, Any]]:
    if content is None:
        return []
    if isinstance(content, str):
        return [{"type": "input_text", "text": content}]
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise Unconvertible("content is neither text nor a list of parts")
    return content


def _text(part: Mapping[str, Any]) -> str:
    if part.get("type") not in ("input_text", "output_text", "text", "summary_text"):
        raise Unconvertible(f"an assistant's part of type {part.get('type')!r} cannot be sent back")
    return str(part.get("text") or "")


def _chat_content(content: object) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return content
    parts = _parts(content)
    if not parts:
        return ""
    if len(parts) == 1 and "text" in parts[0]:
        return str(parts[0]["text"])
    return [_chat_part(part) for part in parts]


def _chat_part(part: Mapping[str, Any]) -> dict[str, Any]:
    match part.get("type"):
        case "input_text" | "output_text" | "text":
            return {"type": "text", "text": part["text"]}
        case "image_url" | "file":  # already in chat's words
            return dict(part)
        case "input_image" if part.get("image_url"):
            image = {"url": part["image_url"]}
            return {"type": "image_url", "image_url": image | _given(part, "detail")}
        case "input_file":
            return {"type": "file", "file": _given(part, "file_id", "filename", "file_data")}
        case "input_audio":
            return {"type": "input_audio", "input_audio": part["input_audio"]}
        case kind:
            raise Unconvertible(f"a part of type {kind!r} cannot be sent over Chat Completions")


def _given(source: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: source[key] for key in keys if source.get(key) is not None}


def in_chat_words(item: Item) -> bool:
    """Whether it is no item, but a chat message that items are made of."""
    return item.get("role") == "tool" or bool(item.get("tool_calls"))


def as_items(items: Iterable[Item]) -> list[Item]:
    """`items` with the chat messages among them (datasets of `messages` rows) made items."""
    whole: list[Item] = []
    for item in items:
        if in_chat_words(item):
            whole += _items_of_message(item)
        else:
            whole.append(item)
    return whole


def items_of(messages: Iterable[ChatMessage]) -> list[Item]:
    """Chat messages as Responses items: the inverse of `messages_of`."""
    return [item for message in messages for item in _items_of_message(message)]


def _items_of_message(message: ChatMessage) -> list[Item]:
    match message["role"]:
        case "assistant":
            return assistant_items(message)
        case "tool":
            call_id, content = message["tool_call_id"], _item_content(message["content"])
            return [{"type": "function_call_output", "call_id": call_id, "output": content}]
        case role:
            return [{"type": "message", "role": role, "content": _item_content(message["content"])}]


def assistant_items(message: Mapping[str, Any]) -> list[Item]:
    """One assistant message as items, in the order in which models say them.

    A message without anything in it is one empty message item, so that a turn never vanishes.
    """
    items: list[Item] = []
    if thoughts := message.get("reasoning_content") or message.get("reasoning"):
        text = {"type": "reasoning_text", "text": str(thoughts)}
        items.append({"type": "reasoning", "summary": [], "content": [text]})
    calls = message.get("tool_calls") or []
    parts = _said(message)
    if parts or not (items or calls):
        parts = parts or [{"type": "output_text", "text": "", "annotations": []}]
        items.append({"type": "message", "role": "assistant", "content": parts})
    items += [_function_call(call) for call in calls]
    return items


def _said(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    content = message.get("content")
    text = content if isinstance(content, str) else "".join(map(_text, _parts(content)))
    parts = [{"type": "output_text", "text": text, "annotations": []}] if text else []
    if refusal := message.get("refusal"):
        parts.append({"type": "refusal", "refusal": str(refusal)})
    return parts


def _function_call(call: Mapping[str, Any]) -> Item:
    function = call.get("function") or {}
    arguments = function.get("arguments")
    return {
        "type": "function_call",
        "call_id": str(call.get("id") or ""),
        "name": str(function.get("name") or ""),
        "arguments": _as_text(arguments),
    }


def _as_text(arguments: object) -> str:
    """Arguments as the model wrote them; some servers send the object instead of its text."""
    if isinstance(arguments, str):
        return arguments
    return "{}" if arguments is None else json.dumps(arguments, ensure_ascii=False)


def _item_content(content: str | list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    return content if isinstance(content, str) else [_item_part(part) for part in content]


def _item_part(part: Mapping[str, Any]) -> dict[str, Any]:
    match part.get("type"):
        case "text":
            return {"type": "input_text", "text": part["text"]}
        case "image_url":
            image = part["image_url"]
            return {"type": "input_image", "image_url": image["url"]} | _given(image, "detail")
        case "file":
            return {"type": "input_file", **part["file"]}
        case "input_audio":
            return dict(part)
        case kind:
            raise Unconvertible(f"a part of type {kind!r} has no item")


def chat_tools(tools: Iterable[Item]) -> list[dict[str, Any]]:
    """Flat Responses tool definitions, nested as Chat Completions wants them."""
    nested = []
    for tool in tools:
        if tool.get("type") != "function":
            kind = tool.get("type")
            raise Unconvertible(f"tools of type {kind!r} cannot be sent over Chat Completions")
        function = _given(tool, "name", "description", "parameters", "strict")
        nested.append({"type": "function", "function": function})
    return nested
