"""Each keyword against an independent validator: an instance's JSON text is accepted iff valid."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from branchline.runtime.core.sampling_params import Constraint
from branchline.runtime.errors import UnsupportedConstraint
from branchline.runtime.grammar.llguidance_backend import LLGuidanceBackend
from branchline.runtime.tokenizer.byte_tokenizer import ByteTokenizer

VALUES: list[Any] = [
    None, True, 0, 1, 3, 7, 10, 2.5, -4, "", "a", "ab", "abc", "red", "2024-02-30", "2024-02-29",
    [], [1], [1, 2], [1, 1], ["a"], [1, "a"], {}, {"a": 1}, {"a": "x"}, {"a": 1, "b": 2}, {"b": 2},
    {"a": 1, "c": "x"}, {"kind": "x", "x": 1}, {"kind": "y", "y": 1}, {"kind": "x", "y": 1},
]  # fmt: skip

SCHEMAS: list[Any] = [
    {"type": "integer", "minimum": 1, "exclusiveMaximum": 10},
    {"type": "number", "multipleOf": 0.5},
    {"type": ["string", "null"], "maxLength": 2},
    {"type": "string", "pattern": "^a"},
    {"type": "string", "pattern": "b"},
    {"type": "string", "format": "date"},
    {"enum": [1, "red", None, [1, 2]]},
    {"const": {"a": 1}},
    {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 2},
    {"type": "array", "contains": {"type": "string"}, "maxItems": 2},
    {"type": "array", "items": {"enum": [1, 2]}, "uniqueItems": True, "maxItems": 2},
    {"type": "array", "prefixItems": [{"type": "integer"}], "items": {"type": "string"}},
    {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
    {"type": "object", "properties": {"a": {}}, "additionalProperties": False},
    {"type": "object", "dependentRequired": {"a": ["b"]}, "properties": {"a": {}, "b": {}}},
    {"type": "object", "maxProperties": 1},
    {"type": "object", "propertyNames": {"pattern": "^[ab]$"}},
    {"not": {"type": ["integer", "string"]}},
    {"not": {"const": 3}, "type": "integer"},
    {"oneOf": [{"type": "integer", "minimum": 3}, {"type": "integer", "maximum": 7}]},
    {"anyOf": [{"type": "integer"}, {"type": "string", "minLength": 2}]},
    {"allOf": [{"type": "integer", "minimum": 1}, {"maximum": 7}]},
    {
        "type": "object",
        "properties": {"kind": {"enum": ["x", "y"]}, "x": {}, "y": {}},
        "required": ["kind"],
        "if": {"properties": {"kind": {"const": "x"}}},
        "then": {"required": ["x"]},
        "else": {"required": ["y"]},
    },
    {"$defs": {"n": {"type": "integer"}}, "type": "array", "items": {"$ref": "#/$defs/n"}},
]


@pytest.fixture(scope="module")
def backend() -> LLGuidanceBackend:
    return LLGuidanceBackend(ByteTokenizer())


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: json.dumps(schema)[:60])
def test_text_is_accepted_exactly_when_the_validator_says_valid(
    backend: LLGuidanceBackend, schema: Any
) -> None:
    grammar = backend.compile(Constraint(kind="json_schema", text=json.dumps(schema)))
    validator = jsonschema.Draft202012Validator(
        schema, format_checker=jsonschema.FormatChecker(["date"])
    )
    tokenizer = ByteTokenizer()
    valid = 0
    for value in VALUES:
        matcher = grammar.matcher()
        taken = all(matcher.accept(token) for token in tokenizer.encode(json.dumps(value)))
        expected = validator.is_valid(value)
        assert (taken and matcher.is_accepting()) == expected, (value, expected)
        valid += expected
    assert 0 < valid < len(VALUES), "the values tell nothing about this schema"


def test_what_cannot_be_enforced_is_refused_with_keyword_and_path(
    backend: LLGuidanceBackend,
) -> None:
    schema = {"type": "object", "properties": {"t": {"type": "array", "uniqueItems": True}}}
    with pytest.raises(UnsupportedConstraint, match=r"uniqueItems at #/properties/t"):
        backend.compile(Constraint(kind="json_schema", text=json.dumps(schema)))
