"""From a function's signature and docstring to a JSON schema, and from arguments to a checked call.

An author's mistake is an `InvalidEnvironment` at load that names file, line and function; a
model's mistake is a `BadArguments` at the call, whose text the model can act on.
"""

import inspect
import re
import typing
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final

import pydantic
import pydantic_core
from pydantic.fields import FieldInfo
from pydantic.json_schema import GenerateJsonSchema, PydanticJsonSchemaWarning

from warren.checks import Function, InvalidEnvironment, hints_of, parameters_of, where
from workers.spec import BadArguments

#: Parameters that Warren fills in; they never appear in a tool's schema.
INJECTED: Final = frozenset({"state", "task", "idempotency_key", "session"})

_ARGS_SECTION: Final = re.compile(r"^[ \t]*(Args|Arguments|Parameters):[ \t]*\n", re.MULTILINE)
_ARGUMENT: Final = re.compile(r"\*{0,2}(?P<name>\w+)\s*(\([^)]*\))?\s*:\s*(?P<text>.*)")


@dataclass(frozen=True, slots=True)
class Docstring:
    """A Google-style docstring: what the function does, and what its arguments mean."""

    text: str
    arguments: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Signature:
    """What may be passed to a tool by the model, and what Warren passes besides."""

    description: str
    schema: Mapping[str, Any]
    injected: frozenset[str]
    model: type[pydantic.BaseModel]
    names: Mapping[str, str]
    """The model's field -> the function's parameter."""

    def arguments(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Validated keyword arguments, defaults left to the function. Raises BadArguments."""
        try:
            checked = self.model.model_validate(dict(given))
        except pydantic.ValidationError as e:
            raise BadArguments(_complaint(e)) from e
        return {self.names[field]: getattr(checked, field) for field in checked.model_fields_set}


def read_signature(function: Function) -> Signature:
    """The schema and checked call of a tool. Raises InvalidEnvironment."""
    parameters = parameters_of(function)
    hints = hints_of(function)
    doc = read_docstring(inspect.getdoc(function) or "")
    offered = [p for name, p in parameters.items() if name not in INJECTED]
    for name in doc.arguments.keys() - parameters.keys():
        raise InvalidEnvironment(
            f"{where(function)}: the docstring describes an argument `{name}` that it does not take"
        )
    fields = {
        f"a{i}": _field(function, parameter, hints, doc.arguments.get(parameter.name))
        for i, parameter in enumerate(offered)
    }
    model = _model(function, fields)
    _check_defaults(function, model)
    return Signature(
        description=doc.text,
        schema=_schema(function, model),
        injected=frozenset(parameters) & INJECTED,
        model=model,
        names={f"a{i}": parameter.name for i, parameter in enumerate(offered)},
    )


def read_docstring(text: str) -> Docstring:
    """Split a cleaned docstring into its text and its Args section."""
    match = _ARGS_SECTION.search(text)
    if match is None:
        return Docstring(text.strip(), {})
    lines = text[match.end() :].split("\n")
    end = next((i for i, line in enumerate(lines) if line and not line[0].isspace()), len(lines))
    rest = "\n".join(lines[end:])
    body = f"{text[: match.start()].rstrip()}\n\n{rest}".strip()
    return Docstring(body, _argument_texts(lines[:end]))


def _argument_texts(lines: list[str]) -> dict[str, str]:
    """`name (type): text`, continued on lines that are indented deeper."""
    texts: dict[str, str] = {}
    indents = [len(line) - len(line.lstrip()) for line in lines if line.strip()]
    name = ""
    for line in lines:
        match = _ARGUMENT.fullmatch(line.strip())
        if match and len(line) - len(line.lstrip()) == min(indents):
            name = match["name"]
            texts[name] = match["text"]
        elif name and line.strip():
            texts[name] = f"{texts[name]} {line.strip()}".strip()
    return texts


def _field(
    function: Function,
    parameter: inspect.Parameter,
    hints: Mapping[str, Any],
    text: str | None,
) -> tuple[Any, Any]:
    name = parameter.name
    if name not in hints:
        raise InvalidEnvironment(
            f"{where(function)}: argument `{name}` has no type annotation; "
            f"write for example `{name}: str`"
        )
    if isinstance(parameter.default, FieldInfo):
        raise InvalidEnvironment(
            f"{where(function)}: write `{name}: Annotated[..., Field(...)] = default`; "
            "a Field as the default would reach whoever calls the function directly"
        )
    described = _described(hints[name]) or text
    extra: dict[str, Any] = {"description": described} if described else {}
    default = ... if parameter.default is parameter.empty else parameter.default
    return hints[name], pydantic.Field(default, alias=name, **extra)


def _described(hint: Any) -> str | None:
    """The text in `Annotated[type, "text"]`, or of a Field in it."""
    if typing.get_origin(hint) is not Annotated:
        return None
    for note in hint.__metadata__:
        if isinstance(note, str):
            return note
        if isinstance(note, FieldInfo) and note.description:
            return note.description
    return None


def _model(function: Function, fields: Mapping[str, Any]) -> type[pydantic.BaseModel]:
    """Fields have names of ours, so that no argument's name can collide with pydantic's."""
    try:
        return pydantic.create_model(
            "Arguments", __config__=pydantic.ConfigDict(extra="forbid"), **dict(fields)
        )
    except (pydantic.errors.PydanticUserError, pydantic_core.SchemaError, TypeError) as e:
        raise InvalidEnvironment(
            f"{where(function)}: its arguments have no JSON form: {_one_line(e)}"
        ) from e


def _check_defaults(function: Function, model: type[pydantic.BaseModel]) -> None:
    """`n: int = None` would tell models of a default that they may not send."""
    for name, field in model.model_fields.items():
        if field.is_required():
            continue
        try:
            model.__pydantic_validator__.validate_assignment(
                model.model_construct(), name, field.default
            )
        except pydantic.ValidationError as e:
            raise InvalidEnvironment(
                f"{where(function)}: the default {field.default!r} of `{field.alias}` does not fit "
                f"its annotation ({e.errors()[0]['msg']})"
            ) from e
        except TypeError as e:  # Annotated[str, Field(ge=1)]
            raise InvalidEnvironment(f"{where(function)}: `{field.alias}`: {_one_line(e)}") from e


class _Schema(GenerateJsonSchema):
    """Without the titles that pydantic makes up: they cost tokens in every prompt."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def _schema(function: Function, model: type[pydantic.BaseModel]) -> dict[str, Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", PydanticJsonSchemaWarning)
            schema = model.model_json_schema(schema_generator=_Schema)
    except (pydantic.errors.PydanticUserError, PydanticJsonSchemaWarning, TypeError) as e:
        raise InvalidEnvironment(
            f"{where(function)}: its arguments have no JSON schema: {_one_line(e)}"
        ) from e
    schema.pop("title", None)
    schema.pop("description", None)
    return {"properties": {}, **schema}


def _complaint(error: pydantic.ValidationError) -> str:
    found = [
        f"{'.'.join(str(part) for part in e['loc']) or 'arguments'}: {e['msg']}"
        for e in error.errors(include_url=False, include_input=False)[:5]
    ]
    return "; ".join(found)


def _one_line(error: Exception) -> str:
    """Without pydantic's advice about its own settings."""
    return " ".join(str(error).partition(". Set `arbitrary")[0].split())[:300]
