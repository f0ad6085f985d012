"""JSON Schemas as applications send them, each with a value; fixed. Knows nothing of grammars."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from branchline.runtime.errors import InvalidRequest

JSON32: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["name", "age", "tags", "address", "kind"],
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {
            "type": "array",
            "items": {"type": "string", "maxLength": 8},
            "minItems": 4,
            "maxItems": 4,
        },
        "address": {
            "type": "object",
            "additionalProperties": False,
            "required": ["street", "zip"],
            "properties": {
                "street": {"type": "string", "maxLength": 20},
                "zip": {"type": "string", "pattern": "^[0-9]{5}$"},
            },
        },
        "kind": {"enum": ["alpha", "beta", "gamma"]},
    },
}
"""The schema of the published workload json32."""

TOOL_CALL: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["name", "arguments"],
    "properties": {
        "name": {"const": "search_flights"},
        "arguments": {
            "type": "object",
            "additionalProperties": False,
            "required": ["origin", "destination", "date", "passengers", "cabin"],
            "properties": {
                "origin": {"type": "string", "pattern": "^[A-Z]{3}$"},
                "destination": {"type": "string", "pattern": "^[A-Z]{3}$"},
                "date": {"type": "string", "format": "date"},
                "passengers": {"type": "integer", "minimum": 1, "maximum": 9},
                "cabin": {"enum": ["economy", "premium economy", "business", "first"]},
            },
        },
    },
}
"""One call of a tool."""


class Instance(msgspec.Struct, frozen=True):
    """A value and whether the schema holds for it."""

    valid: bool
    data: Any


class Sample(msgspec.Struct, frozen=True):
    """A schema, its name, and values to try (maybe none)."""

    id: str
    schema: Any
    tests: list[Instance] = []


class _Own(NamedTuple):
    name: str
    schema: dict[str, Any]
    good: Any
    bad: Any


def _object(required: list[str] | None = None, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required or list(properties)}


_TEXT = {"type": "string"}
_SHAPES = {
    "oneOf": [
        _object(kind={"const": "circle"}, radius={"type": "number", "minimum": 0}),
        _object(kind={"const": "square"}, side={"type": "number", "exclusiveMinimum": 0}),
        _object(kind={"const": "path"}, points={"type": "array", "items": {"type": "number"}}),
    ]
}
_TREE = {
    "$defs": {"node": _object(["name"], name=_TEXT, children={"type": "array"})},
    "$ref": "#/$defs/node",
}
_TREE["$defs"]["node"]["properties"]["children"]["items"] = {"$ref": "#/$defs/node"}  # type: ignore[index]
_PAYMENT = {
    **_object(["method"], method={"enum": ["card", "transfer"]}, card=_TEXT, iban=_TEXT),
    "if": _object(method={"const": "card"}),
    "then": {"required": ["card"]},
    "else": {"required": ["iban"]},
}
_TRIP = {"name": "search_flights", "arguments": {"origin": "PRG", "destination": "LIS"}}
_TRIP["arguments"] |= {"date": "2024-02-29", "passengers": 2, "cabin": "first"}  # type: ignore[operator]
_PERSON = {"name": "Ada", "age": 36, "tags": ["a", "b", "c", "d"], "kind": "beta"}
_PERSON["address"] = {"street": "St James's Square", "zip": "12345"}
_OWN = (
    _Own("extraction", JSON32, _PERSON, {**_PERSON, "age": 121}),
    _Own("tool call", TOOL_CALL, _TRIP, {"name": "search_flights", "arguments": {}}),
    _Own("tagged union", _SHAPES, {"kind": "circle", "radius": 1.5}, {"kind": "square"}),
    _Own("tree", _TREE, {"name": "a", "children": [{"name": "b"}]}, {"children": []}),
    _Own("condition", _PAYMENT, {"method": "card", "card": "1"}, {"method": "transfer"}),
    _Own("any of types", {"type": ["string", "null", "integer"]}, None, 1.5),
    _Own("map", {"type": "object", "additionalProperties": {"type": "integer"}}, {"a": 1}, [1]),
    _Own(
        "formats",
        _object(at={"format": "date-time"}, id={"format": "uuid"}),
        {"at": "2024-02-29T12:00:00Z", "id": "12345678-1234-1234-1234-123456789abc"},
        {"at": 1},
    ),
    _Own("steps", _object(price={"type": "number", "multipleOf": 0.01}), {"price": 9.99}, {}),
    _Own(
        "flags",
        {"type": "array", "items": {"enum": ["a", "b", "c"]}, "uniqueItems": True},
        ["c", "a"],
        ["a", "a"],
    ),
    _Own("not", {"type": "string", "not": {"enum": ["root", "admin"]}}, "ada", "root"),
    _Own("wide", _object(["p0"], **{f"p{at}": _TEXT for at in range(80)}), {"p0": ""}, {"p1": ""}),
)


def own() -> list[Sample]:
    """The fixed set."""
    return [
        Sample(one.name, one.schema, [Instance(True, one.good), Instance(False, one.bad)])
        for one in _OWN
    ]


def read(path: str) -> list[Sample]:
    """A set from a file: JSON lines with `id`, `schema`, and maybe `tests` of `valid` and `data`.

    Raises:
        InvalidRequest: it cannot be read, or a line is something else.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")  # not at U+2028
        return [msgspec.convert(json.loads(line), Sample) for line in lines if line.strip()]
    except (OSError, ValueError, msgspec.ValidationError) as error:
        raise InvalidRequest(
            f"no set of schemas: {error}",
            value=path,
            hint='Give JSON lines like {"id": "a", "schema": {…}, "tests": '
            '[{"valid": true, "data": 1}]}.',
        ) from error
