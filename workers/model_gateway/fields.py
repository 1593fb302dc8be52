"""Request fields in the words of each API: options are kept as Responses fields inside."""

import json
from collections.abc import Mapping
from typing import Any, Final

from workers.model_gateway.backend import Terms
from workers.model_gateway.conversion import chat_tools

#: Chat Completions has these under the same name.
_SAME: Final = ("temperature", "top_p", "seed", "parallel_tool_calls", "user", "service_tier")
#: Responses has no such field.
_NOT_IN_RESPONSES: Final = ("seed", "extra_body", "chat_template_kwargs")
#: NeMo Gym's rows keep these as JSON text in `metadata`, whose values must be strings.
_IN_METADATA: Final = ("extra_body", "chat_template_kwargs")

_OF_TOOLS: Final = frozenset({"tool_choice", "parallel_tool_calls"})
_HOLD_EXTRA: Final = frozenset({"metadata", *_IN_METADATA})


def chat_terms(terms: Terms, length_field: str) -> dict[str, Any]:
    """Tools and options as Chat Completions fields."""
    fields = chat_fields(terms.options, length_field=length_field, tools=bool(terms.tools))
    return fields | {"tools": chat_tools(terms.tools)} if terms.tools else fields


def chat_fields(options: Mapping[str, Any], *, length_field: str, tools: bool) -> dict[str, Any]:
    """The options as Chat Completions fields.

    `length_field` is what the server calls the output limit. Without `tools` nothing is said of
    how to use them: OpenAI, vLLM and others refuse that.
    """
    fields = {key: options[key] for key in _SAME if options.get(key) is not None}
    if (limit := options.get("max_output_tokens")) is not None:
        fields[length_field] = limit
    if (choice := options.get("tool_choice")) is not None:
        fields["tool_choice"] = _chat_tool_choice(choice)
    if (count := options.get("top_logprobs")) is not None:
        fields |= {"logprobs": True, "top_logprobs": count}
    if (effort := (options.get("reasoning") or {}).get("effort")) is not None:
        fields["reasoning_effort"] = effort
    fields |= _chat_format(options.get("text") or {}) | extra_fields(options)
    return fields if tools else {k: v for k, v in fields.items() if k not in _OF_TOOLS}


def responses_fields(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as Responses fields."""
    fields = {k: v for k, v in options.items() if v is not None and k not in _NOT_IN_RESPONSES}
    if metadata := fields.pop("metadata", None):
        rest = {k: v for k, v in metadata.items() if k not in _IN_METADATA}
        fields |= {"metadata": rest} if rest else {}
    return fields | extra_fields(options)


def extra_fields(options: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that only some servers know: `extra_body`, `chat_template_kwargs`."""
    if options.keys().isdisjoint(_HOLD_EXTRA):
        return {}
    metadata = options.get("metadata") or {}
    given = {key: metadata.get(key, options.get(key)) for key in _IN_METADATA}
    read = {k: json.loads(v) if isinstance(v, str) else v for k, v in given.items() if v}
    extra = dict(read.get("extra_body") or {})
    if "chat_template_kwargs" in read:
        extra["chat_template_kwargs"] = read["chat_template_kwargs"]
    return extra


def _chat_tool_choice(choice: object) -> object:
    if isinstance(choice, Mapping) and "name" in choice:
        return {"type": "function", "function": {"name": choice["name"]}}
    return choice


def _chat_format(text: Mapping[str, Any]) -> dict[str, Any]:
    fields = {"verbosity": text["verbosity"]} if text.get("verbosity") else {}
    form = text.get("format") or {"type": "text"}
    if form["type"] == "text":
        return fields
    if form["type"] == "json_schema":
        schema = {k: v for k, v in form.items() if k != "type" and v is not None}
        form = {"type": "json_schema", "json_schema": schema}
    return fields | {"response_format": form}
