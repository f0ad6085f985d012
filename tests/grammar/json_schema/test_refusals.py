"""What cannot be enforced is refused by keyword and path; nothing hangs."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from branchline.runtime.errors import InvalidRequest, UnsupportedConstraint
from branchline.runtime.grammar.json_schema.compiler import compile_schema, supported_keywords
from branchline.runtime.grammar.json_schema.expander import Effort
from branchline.runtime.grammar.json_schema.lark import Layout
from tests.grammar.json_schema.harness import Checker

OVERLAPPING = [
    {"properties": {f"p{i}": {"minimum": i}, f"q{i}": {"type": "string"}}} for i in range(14)
]


@pytest.mark.parametrize(
    ("schema", "where"),
    [
        ({"properties": {"a": {"uniqueItems": True}}}, "uniqueItems at #/properties/a"),
        ({"not": {"uniqueItems": True}}, "uniqueItems at #/not"),
        ({"items": {"pattern": "(a)\\1"}}, "pattern at #/items"),
        ({"items": {"pattern": "(?<=a)b"}}, "pattern at #/items"),
        ({"patternProperties": {"(": {}}}, "patternProperties at #"),
        ({"type": "string", "format": "idn-hostname"}, "format at #"),
        ({"not": {"multipleOf": 3}}, "not at #/not"),
        ({"$ref": "http://other.org/x"}, "$ref at #"),
        ({"$schema": "http://json-schema.org/draft-03/schema#"}, "$schema at #"),
        ({"$dynamicRef": "#x"}, "$dynamicRef at #"),
        ({"anyOf": [{}], "unevaluatedProperties": False}, "unevaluatedProperties at #"),
        ({"type": "any"}, "type at #"),
        (
            {"type": "array", "uniqueItems": True, "items": {"enum": list(range(70))}},
            "uniqueItems at #",
        ),
        ({"oneOf": OVERLAPPING, "type": "object"}, "oneOf at #"),
        ({"type": "array", "minItems": 10**9}, "minItems at #"),
        ({"type": "array", "contains": {}, "maxItems": 10**4}, "contains at #"),
        (
            {"dependentRequired": {f"p{i}": [f"q{i}"] for i in range(9)}, "maxProperties": 9},
            "maxProperties at #",
        ),
    ],
)
def test_refused_by_keyword_and_path(schema: Any, where: str) -> None:
    with pytest.raises(UnsupportedConstraint) as error:
        compile_schema(json.dumps(schema))
    assert error.value.value == where


@pytest.mark.parametrize(
    "schema",
    [
        False,
        {"type": []},
        {"not": {}},
        {"allOf": [{"const": 1}, {"const": 2}]},
        {"required": ["a"], "properties": {"a": False}, "type": "object"},
        {"minItems": 3, "maxItems": 2, "type": "array"},
        {"type": "string", "minLength": 3, "pattern": "^.$"},
        {"type": "object", "required": ["a"], "maxProperties": 0},
        {
            "type": "object",
            "dependentRequired": {"a": ["b"]},
            "required": ["a"],
            "properties": {"b": False},
        },
        {
            "$ref": "#/$defs/x",
            "$defs": {"x": {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/x"}}},
        },
    ],
)
def test_a_schema_without_values_is_refused(schema: Any) -> None:
    with pytest.raises(UnsupportedConstraint, match="no text satisfies"):
        compile_schema(json.dumps(schema))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1]",
        "{",
        "3",
        '{"minimum": NaN}',
        '{"minimum": 1e99999}',
        '{"minLength": -1}',
        '{"minItems": "a"}',
        '{"required": true}',
        '{"properties": []}',
        '{"items": 3}',
        '{"allOf": {}}',
        '{"enum": 1}',
        '{"$ref": 1}',
        '{"$ref": "#/nowhere"}',
        '{"$ref": "#"}',
        '{"multipleOf": 0}',
        '{"pattern": 1}',
        '{"anyOf": [{"$ref": "#"}]}',
        '{"const": "\\ud800"}',
        '{"a":' * 150 + "1" + "}" * 150,
    ],
)
def test_what_is_no_schema_is_an_invalid_request(text: str) -> None:
    with pytest.raises(InvalidRequest):
        compile_schema(text)


def laughs(depth: int) -> Any:
    defs: dict[str, Any] = {
        f"d{i}": {"type": "array", "prefixItems": [{"$ref": f"#/$defs/d{i + 1}"}] * 2}
        for i in range(depth)
    }
    return {"$ref": "#/$defs/d0", "$defs": {**defs, f"d{depth}": {"type": "null"}}}


def both_of(count: int) -> Any:
    pair = [{"properties": {"x": {"const": i}}} for i in range(2)]
    return {
        "allOf": [
            {"anyOf": [{"properties": {f"p{i}{j}": one}} for j, one in enumerate(pair)]}
            for i in range(count)
        ]
    }


@pytest.mark.parametrize(
    "schema",
    [
        laughs(40),
        both_of(30),
        {"enum": [f"word {i}" for i in range(5000)]},
        {"type": "object", "properties": {f"p{i}": {} for i in range(2000)}},
        {"type": "string", "maxLength": 10**5, "pattern": "^(a|b)*$"},
        {"type": "string", "pattern": "^(a|a)*(a|a)*b$"},
        {"type": "string", "pattern": "(x+x+)+y"},
        {"type": "string", "allOf": [{"pattern": f".*a.{{{i}}}"} for i in range(12)]},
        {
            "patternProperties": {
                f"{c}.*{d}": {"const": i}
                for i, (c, d) in enumerate(zip("abcdefgh", "bcdefghi", strict=True))
            }
        },
        {"oneOf": [{"pattern": f".{{{i}}}x"} for i in range(12)], "type": "string"},
        {"not": {"enum": [{"a": i, "b": [i]} for i in range(8)]}, "type": "object"},
        {"dependentRequired": {f"p{i}": [f"p{i + 1}"] for i in range(200)}, "type": "object"},
        {"allOf": [{"not": {"required": [f"p{i}", f"p{i * 7 % 60}"]}} for i in range(60)]},
        {"type": "array", "contains": {"const": 1}, "minContains": 90, "maxItems": 1000},
    ],
    ids=lambda schema: json.dumps(schema)[:40],
)
def test_hostile_schemas_end_soon(schema: Any) -> None:
    begun = time.thread_time()
    try:
        compile_schema(json.dumps(schema))
    except (UnsupportedConstraint, InvalidRequest) as error:
        assert error.hint
    assert time.thread_time() - begun < 5


def test_effort_is_bounded() -> None:
    schema = json.dumps({"properties": {f"p{i}": {"minimum": i} for i in range(50)}})
    compile_schema(schema)
    with pytest.raises(UnsupportedConstraint, match="different places"):
        compile_schema(schema, effort=Effort(states=10))
    with pytest.raises(InvalidRequest, match="too large"):
        compile_schema(schema, effort=Effort(symbols=20))


@pytest.mark.parametrize("layout", [{"item": ";"}, {"key": "="}, {"white": -1}])
def test_separators_are_those_of_json(layout: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        Layout(**layout)


def test_unlisted_names_come_twice_only_where_that_changes_nothing() -> None:
    checker = Checker({"type": "object", "additionalProperties": {"type": "integer"}})
    assert checker.takes_text('{"a": 1, "a": 2}')
    assert not checker.takes_text('{"a": 1, "a": "x"}')


def test_supported_keywords_have_a_status_each() -> None:
    found = supported_keywords()
    assert len({one.name for one in found}) == len(found)
    assert {one.status for one in found} == {"enforced", "partly", "refused"}
    assert all(one.note for one in found if one.status != "enforced")
