"""Pydantic models: their own schema made strict, their own reader. Loaded only when one is used."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from branchline.lang.errors import UnsupportedConstraint
from branchline.lang.json_types import ANY, MAX_INT, Foreign, JsonType
from branchline.lang.plain import DATE_PATTERN, DATETIME_PATTERN, TIME_PATTERN, UUID_PATTERN
from branchline.lang.refusals import refused

if TYPE_CHECKING:
    from branchline.lang.schemas import TypeReader

_NOTES = frozenset({"title", "description", "default", "examples", "deprecated", "discriminator"})
_SCHEMAS_BY_NAME = frozenset({"properties", "$defs", "patternProperties", "dependentSchemas"})
_EXACT = {
    "date": DATE_PATTERN,
    "time": TIME_PATTERN,
    "date-time": DATETIME_PATTERN,
    "uuid": UUID_PATTERN,
}
"""Formats whose texts Python reads; a schema's `format` alone would allow 31 February."""


def read_model(model: Any, path: str, reader: TypeReader) -> JsonType:
    """A model as JSON. Definitions go to the reader's document.

    Raises `UnsupportedConstraint` for a model that has no schema.
    """
    from pydantic.errors import PydanticUserError

    try:
        schema = model.model_json_schema(mode="validation")
    except PydanticUserError as error:
        why = error.message.split("\n")[0]
        raise refused(model, path, f"pydantic gives no schema for it ({why})") from error
    keys = {name: reader.key(name) for name in schema.get("$defs", {})}
    strict = _strict(schema, keys)
    for name, body in strict.pop("$defs", {}).items():
        reader.foreign[keys[name]] = body
    return Foreign(
        model.__name__, strict, model.model_validate_json, lambda name: _field(model, name, path)
    )


def _field(model: Any, name: str, path: str) -> JsonType | None:
    from branchline.lang.schemas import TypeReader

    for field, info in model.model_fields.items():
        if name in (info.alias, field):
            try:
                return TypeReader().read(info.annotation, f"{path}.{field}".lstrip("."))
            except UnsupportedConstraint:
                return ANY  # a part of a pydantic model that only pydantic can read
    return None


def _strict(schema: Any, keys: Mapping[str, str]) -> Any:
    """The same schema without notes; objects take only the members they declare."""
    if isinstance(schema, list):
        return [_strict(item, keys) for item in schema]
    if not isinstance(schema, dict):
        return schema
    result: dict[str, Any] = {}
    for word, value in schema.items():
        if word in ("enum", "const", "required"):
            result[word] = json.loads(json.dumps(value))
        elif word in _SCHEMAS_BY_NAME:
            result[word] = {name: _strict(item, keys) for name, item in value.items()}
        elif word == "$ref":
            result[word] = f"#/$defs/{keys[value.rpartition('/')[2]]}"
        elif word == "format" and value in _EXACT and "pattern" not in schema:
            result["pattern"] = f"^({_EXACT[value]})$"
        elif word == "oneOf" and "discriminator" in schema:
            result["anyOf"] = _strict(value, keys)  # the tag tells the branches apart
        elif word not in _NOTES:
            result[word] = _strict(value, keys)
    if "properties" in result:
        result.setdefault("additionalProperties", False)
    if result.get("type") == "integer" and "enum" not in result:
        if "exclusiveMinimum" not in result:
            result.setdefault("minimum", -MAX_INT)
        if "exclusiveMaximum" not in result:
            result.setdefault("maximum", MAX_INT)
    return result
