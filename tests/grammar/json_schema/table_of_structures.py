"""Rows of the table for arrays, objects, combinations of schemas and references."""

from __future__ import annotations

from tests.grammar.json_schema.table_of_values import D4, Row

D6 = "http://json-schema.org/draft-06/schema#"
D7 = "http://json-schema.org/draft-07/schema#"
D19 = "https://json-schema.org/draft/2019-09/schema"
D20 = "https://json-schema.org/draft/2020-12/schema"

OBJECT = {"type": "object"}
TREE = {
    "type": "object",
    "properties": {"v": {"type": "integer"}, "kids": {"items": {"$ref": "#"}}},
}

ARRAYS: list[Row] = [
    ({"items": {"type": "integer"}}, [[], [1, 2], "x"], [["a"], [1, None]]),
    ({"type": "array", "items": False}, [[]], [[1]]),
    ({"type": "array", "minItems": 2}, [[1, 2], [1, 2, 3]], [[], [1]]),
    ({"type": "array", "maxItems": 2}, [[], [1, 2]], [[1, 2, 3]]),
    (
        {"type": "array", "minItems": 1, "maxItems": 3, "items": {"type": "null"}},
        [[None], [None] * 3],
        [[], [None] * 4, [1]],
    ),
    (
        {"prefixItems": [{"type": "string"}, {"type": "integer"}]},
        [[], ["a"], ["a", 1, None]],
        [[1], ["a", "b"]],
    ),
    ({"prefixItems": [{"type": "string"}], "items": False}, [[], ["a"]], [["a", 1], [1]]),
    (
        {
            "type": "array",
            "prefixItems": [{"const": 1}],
            "items": {"const": 2},
            "minItems": 2,
            "maxItems": 3,
        },
        [[1, 2], [1, 2, 2]],
        [[1], [1, 1], [1, 2, 2, 2]],
    ),
    (
        {"$schema": D7, "items": [{"type": "string"}], "additionalItems": {"type": "integer"}},
        [["a", 1, 2], []],
        [["a", "b"], [1]],
    ),
    (
        {"$schema": D7, "type": "array", "items": [{}, {}], "additionalItems": False},
        [[1, 2], [1]],
        [[1, 2, 3]],
    ),
    ({"type": "array", "contains": {"const": 1}}, [[1], [2, 1, 3]], [[], [2]]),
    (
        {"type": "array", "contains": {"type": "string"}, "minContains": 2, "maxContains": 3},
        [["a", 1, "b"], ["a", "b", "c"]],
        [["a"], ["a"] * 4, [1]],
    ),
    ({"type": "array", "contains": {"const": 1}, "minContains": 0}, [[], [2], [1]], [{}]),
    (
        {"$schema": D7, "type": "array", "contains": {"const": 1}, "minContains": 0},
        [[1], [1, 2]],
        [[], [2]],
    ),
    (
        {"$schema": D7, "type": "array", "contains": {"const": 1}, "maxContains": 1},
        [[1], [1, 1]],
        [[], [2]],
    ),
    (
        {"$schema": D7, "prefixItems": [{"type": "null"}], "items": {"type": "integer"}},
        [[], [1]],
        [[None]],
    ),
    (
        {"$schema": D19, "items": [{"type": "null"}], "unevaluatedItems": False},
        [[], [None]],
        [[1], [None, 1]],
    ),
    (
        {"type": "array", "contains": {"const": 1}, "maxItems": 2},
        [[1], [2, 1]],
        [[2, 2], [2, 2, 1]],
    ),
    (
        {"type": "array", "contains": {"const": 1}, "minItems": 2},
        [[1, 2], [2, 2, 1]],
        [[1], [2, 2]],
    ),
    ({"type": "array", "not": {"contains": {"const": 1}}}, [[], [2]], [[1], [2, 1]]),
    ({"type": "array", "not": {"items": {"const": 1}}}, [[2], [1, 2]], [[], [1, 1]]),
    (
        {"type": "array", "not": {"prefixItems": [{"const": 1}, {"const": 2}]}},
        [[2], [1, 3, 4]],
        [[], [1], [1, 2]],
    ),
    ({"type": "array", "not": {"minItems": 2}}, [[], [1]], [[1, 2]]),
    (
        {"type": "array", "uniqueItems": True, "items": {"enum": ["a", "b", 1, None, True]}},
        [[], ["b", "a"], [True, 1, None]],
        [["a", "a"], [1, "b", 1], ["c"]],
    ),
    (
        {
            "type": "array",
            "uniqueItems": True,
            "minItems": 2,
            "maxItems": 2,
            "items": {"enum": [1, 2, 3]},
        },
        [[1, 2], [3, 1]],
        [[1], [1, 1], [1, 2, 3]],
    ),
    (
        {"type": "array", "uniqueItems": True, "items": {"type": "boolean"}},
        [[True, False], []],
        [[True, True]],
    ),
    ({"type": "array", "uniqueItems": True, "maxItems": 1}, [[], [[1, 1]]], [[1, 1]]),
    (
        {
            "type": "array",
            "uniqueItems": True,
            "prefixItems": [{"type": "string"}, {"type": "null"}],
            "items": False,
        },
        [["a", None], ["a"]],
        [[None], ["a", "a"]],
    ),
    ({"type": "array", "uniqueItems": False}, [[1, 1]], [1]),
    (
        {
            "$schema": D20,
            "type": "array",
            "prefixItems": [{}],
            "unevaluatedItems": {"type": "null"},
        },
        [[1, None]],
        [[1, 2]],
    ),
]

OBJECTS: list[Row] = [
    ({"properties": {"a": {"type": "integer"}}}, [{}, {"a": 1}, {"b": "x"}, 3], [{"a": "x"}]),
    (
        {**OBJECT, "properties": {"a": {}, "b": {}}, "additionalProperties": False},
        [{}, {"a": 1}, {"b": 1, "a": 2}],
        [{"c": 1}, {"a": 1, "c": 1}],
    ),
    ({**OBJECT, "additionalProperties": {"type": "integer"}}, [{}, {"x": 1, "": 2}], [{"x": "a"}]),
    ({**OBJECT, "properties": {"a": False}}, [{}, {"b": 1}], [{"a": 1}]),
    ({**OBJECT, "required": ["a", "b"]}, [{"a": 1, "b": 2}, {"b": 1, "a": 2}], [{}, {"a": 1}]),
    ({"required": ["a"], "properties": {"a": {"type": "null"}}}, [{"a": None}, 1], [{"a": 1}, {}]),
    (
        {
            **OBJECT,
            "properties": {"a": {}, 'é"\\': {}},
            "required": ['é"\\'],
            "additionalProperties": False,
        },
        [{'é"\\': 1}, {"a": 1, 'é"\\': 1}],
        [{"a": 1}, {"é": 1}],
    ),
    (
        {**OBJECT, "patternProperties": {"^x-": {"type": "string"}}, "additionalProperties": False},
        [{}, {"x-a": "b"}],
        [{"x-a": 1}, {"a": "b"}],
    ),
    (
        {**OBJECT, "patternProperties": {"a": {"minimum": 2}, "b": {"maximum": 5}}},
        [{"ab": 3, "a": 9, "b": 1, "c": 0}],
        [{"ab": 1}, {"ab": 6}, {"a": 1}, {"b": 6}],
    ),
    (
        {
            **OBJECT,
            "properties": {"foo": {"maxLength": 3}},
            "patternProperties": {"^f": {"minLength": 2}},
            "additionalProperties": {"type": "null"},
        },
        [{"foo": "abc"}, {"fa": "abcd"}, {"x": None}],
        [{"foo": "a"}, {"foo": "abcd"}, {"fa": "a"}, {"x": 1}],
    ),
    ({**OBJECT, "propertyNames": {"pattern": "^[a-z]+$"}}, [{}, {"ab": 1}], [{"A": 1}, {"a1": 1}]),
    ({**OBJECT, "propertyNames": {"enum": ["a", "b"]}}, [{"a": 1}, {}], [{"c": 1}]),
    (
        {**OBJECT, "propertyNames": {"maxLength": 1}, "properties": {"long": {}}},
        [{"a": 1}],
        [{"long": 1}],
    ),
    ({**OBJECT, "minProperties": 2}, [{"a": 1, "b": 2}], [{}, {"a": 1}]),
    ({**OBJECT, "maxProperties": 1}, [{}, {"a": 1}], [{"a": 1, "b": 2}]),
    (
        {
            **OBJECT,
            "properties": {"a": {}, "b": {}, "c": {}},
            "additionalProperties": False,
            "minProperties": 1,
            "maxProperties": 2,
        },
        [{"a": 1}, {"c": 1, "a": 1}],
        [{}, {"a": 1, "b": 1, "c": 1}],
    ),
    (
        {
            **OBJECT,
            "properties": {"a": {}, "b": {}, "r": {}},
            "required": ["r"],
            "maxProperties": 2,
        },
        [{"r": 1}, {"a": 1, "r": 1}],
        [{"a": 1, "b": 1, "r": 1}, {"a": 1}],
    ),
    (
        {**OBJECT, "dependentRequired": {"a": ["b", "c"]}},
        [{}, {"b": 1}, {"a": 1, "b": 1, "c": 1}],
        [{"a": 1}, {"a": 1, "b": 1}],
    ),
    (
        {"$schema": D7, **OBJECT, "dependencies": {"a": ["b"]}},
        [{}, {"b": 1}, {"a": 1, "b": 1}],
        [{"a": 1}],
    ),
    (
        {
            "$schema": D7,
            **OBJECT,
            "dependencies": {"a": {"required": ["b"], "properties": {"b": {"const": 1}}}},
        },
        [{}, {"b": 2}, {"a": 1, "b": 1}],
        [{"a": 1}, {"a": 1, "b": 2}],
    ),
    (
        {**OBJECT, "dependentSchemas": {"a": {"properties": {"b": {"const": 1}}}}},
        [{"b": 2}, {"a": 1}, {"a": 1, "b": 1}],
        [{"a": 1, "b": 2}],
    ),
    ({**OBJECT, "not": {"required": ["a"]}}, [{}, {"b": 1}], [{"a": 1}]),
    ({**OBJECT, "not": {"required": ["a", "b"]}}, [{}, {"a": 1}, {"b": 1}], [{"a": 1, "b": 1}]),
    ({**OBJECT, "not": {"properties": {"a": {"const": 1}}}}, [{"a": 2}], [{}, {"a": 1}]),
    (
        {**OBJECT, "not": {"additionalProperties": {"type": "integer"}}},
        [{"a": "x"}, {"a": 1, "b": None}],
        [{}, {"a": 1}],
    ),
    (
        {**OBJECT, "not": {"patternProperties": {"^a": {"const": 1}}}},
        [{"a": 2}],
        [{"a": 1}, {"b": 2}],
    ),
    ({**OBJECT, "not": {"propertyNames": {"maxLength": 1}}}, [{"ab": 1}], [{"a": 1}, {}]),
    ({**OBJECT, "not": {"maxProperties": 1}}, [{"a": 1, "b": 1}], [{"a": 1}]),
    ({**OBJECT, "not": {"dependentRequired": {"a": ["b"]}}}, [{"a": 1}], [{}, {"a": 1, "b": 1}]),
    ({**OBJECT, "not": {"const": {"a": 1}}}, [{}, {"a": 2}, {"a": 1, "b": 1}], [{"a": 1}]),
    (
        {"$schema": D20, **OBJECT, "properties": {"a": {}}, "unevaluatedProperties": False},
        [{"a": 1}],
        [{"b": 1}],
    ),
]

COMBINED: list[Row] = [
    ({"allOf": [{"minimum": 2}, {"maximum": 4}]}, [2, 4, "a"], [1, 5]),
    (
        {"allOf": [{"properties": {"a": {"type": "integer"}}}, {"required": ["a"]}], **OBJECT},
        [{"a": 1}],
        [{}, {"a": "x"}],
    ),
    (
        {
            "allOf": [
                {"properties": {"a": {}}, "additionalProperties": False},
                {"properties": {"b": {}}},
            ],
            **OBJECT,
        },
        [{"a": 1}, {}],
        [{"b": 1}],
    ),
    ({"anyOf": [{"type": "string"}, {"minimum": 3}]}, ["a", 3, None], [2]),
    (
        {"anyOf": [{"required": ["a"]}, {"required": ["b"]}], **OBJECT},
        [{"a": 1}, {"b": 1}, {"a": 1, "b": 1}],
        [{}],
    ),
    ({"anyOf": [False, {"const": 1}]}, [1], [2]),
    ({"oneOf": [{"type": "integer"}, {"minimum": 2}]}, [1, 2.5, 0], [3, 1.5]),
    ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, [1.5], [1, "a"]),
    (
        {"oneOf": [{"required": ["a"]}, {"required": ["b"]}], **OBJECT},
        [{"a": 1}, {"b": 1}],
        [{}, {"a": 1, "b": 1}],
    ),
    (
        {
            "oneOf": [
                {
                    "properties": {"k": {"const": "x"}, "v": {"type": "string"}},
                    "required": ["k", "v"],
                },
                {
                    "properties": {"k": {"const": "y"}, "v": {"type": "integer"}},
                    "required": ["k", "v"],
                },
            ],
            **OBJECT,
        },
        [{"k": "x", "v": "s"}, {"k": "y", "v": 1}],
        [{"k": "x", "v": 1}, {"k": "z", "v": 1}, {"k": "y"}],
    ),
    ({"oneOf": [{"maxLength": 2}, {"minLength": 2}], "type": "string"}, ["a", "abc"], ["ab"]),
    ({"oneOf": [{}, {"const": 1}]}, [2, "a"], [1]),
    (
        {"type": "array", "oneOf": [{"minItems": 2}, {"items": {"const": 1}}]},
        [[], [1], [1, 2]],
        [[2], [1, 1]],
    ),
    (
        {"oneOf": [{"pattern": "^a"}, {"pattern": "b$"}], "type": "string"},
        ["a", "b", "ac"],
        ["ab", "c"],
    ),
    ({"not": {"type": "string"}}, [1, None, [], {}], ["a"]),
    ({"type": "integer", "not": {"not": {"minimum": 3}}}, [3, 4], [2]),
    ({"not": {"anyOf": [{"type": "string"}, {"type": "null"}]}}, [1, []], ["a", None]),
    ({"type": "integer", "not": {"allOf": [{"minimum": 2}, {"maximum": 4}]}}, [1, 5], [2, 4]),
    ({"type": "integer", "not": {"oneOf": [{"minimum": 2}, {"maximum": 4}]}}, [2, 3, 4], [1, 5]),
    (
        {
            "if": {"properties": {"a": {"const": 1}}, "required": ["a"]},
            "then": {"required": ["b"]},
            "else": {"required": ["c"]},
            **OBJECT,
        },
        [{"a": 1, "b": 0}, {"a": 2, "c": 0}, {"c": 0}],
        [{"a": 1, "c": 0}, {"a": 2, "b": 0}, {}],
    ),
    ({"if": {"type": "string"}, "then": {"minLength": 2}}, ["ab", 1], ["a"]),
    ({"if": {"minimum": 5}, "else": {"multipleOf": 2}, "type": "integer"}, [5, 7, 2], [1, 3]),
    ({"then": {"const": 1}, "type": "integer"}, [1, 2], ["a"]),
    (
        {
            "not": {"if": {"minimum": 5}, "then": {"maximum": 9}, "else": {"maximum": 3}},
            "type": "integer",
        },
        [4, 10],
        [3, 5, 9],
    ),
    ({"$schema": D6, "if": {"const": 1}, "then": False}, [1, 2], []),
    (
        {
            "allOf": [{"if": {"required": [n]}, "then": {"required": [n + n]}} for n in "abc"],
            **OBJECT,
        },
        [{}, {"a": 1, "aa": 1}, {"cc": 1}],
        [{"a": 1}, {"b": 1, "aa": 1}],
    ),
]

REFERENCES: list[Row] = [
    ({"$defs": {"n": {"type": "integer"}}, "items": {"$ref": "#/$defs/n"}}, [[1], []], [["a"]]),
    ({"definitions": {"n": {"type": "integer"}}, "$ref": "#/definitions/n"}, [1], ["a"]),
    (
        TREE,
        [{}, {"v": 1, "kids": [{"kids": [{"v": 2}]}, {}]}],
        [{"kids": [{"v": "x"}]}, {"kids": [1]}],
    ),
    (
        {
            "$schema": D7,
            "definitions": {"n": {"type": "integer"}},
            "$ref": "#/definitions/n",
            "minimum": 3,
        },
        [1, 5],
        ["a"],
    ),
    (
        {"$schema": D20, "$defs": {"n": {"type": "integer"}}, "$ref": "#/$defs/n", "minimum": 3},
        [5],
        [1, "a"],
    ),
    ({"$defs": {"n": {"$anchor": "here", "const": 1}}, "$ref": "#here"}, [1], [2]),
    (
        {"$id": "http://x.y/root", "$defs": {"n": {"$id": "other", "const": 1}}, "$ref": "other"},
        [1],
        [2],
    ),
    (
        {
            "$id": "http://x.y/root",
            "$defs": {"n": {"const": 1}},
            "$ref": "http://x.y/root#/$defs/n",
        },
        [1],
        [2],
    ),
    ({"$defs": {"a/b~c": {"const": 1}}, "$ref": "#/$defs/a~1b~0c"}, [1], [2]),
    (
        {
            "$defs": {
                "list": {
                    "type": "object",
                    "properties": {"next": {"$ref": "#/$defs/list"}},
                    "required": ["v"],
                    "additionalProperties": {"type": "null"},
                }
            },
            "allOf": [{"$ref": "#/$defs/list"}, {"maxProperties": 2}],
        },
        [{"v": None}, {"v": None, "next": {"v": None}}],
        [{}, {"next": {"v": None}}, {"v": 1}],
    ),
    (
        {
            "$defs": {
                "t": {
                    "anyOf": [{"type": "null"}, {"type": "array", "items": {"$ref": "#/$defs/t"}}]
                }
            },
            "not": {"$ref": "#/$defs/t"},
        },
        [1, [1], [[1]], {}],
        [None, [], [[None]]],
    ),
    ({"properties": {"$ref": {"type": "string"}}, **OBJECT}, [{"$ref": "x"}], [{"$ref": 1}]),
    (
        {
            "$schema": D4,
            "id": "http://x.y/r",
            "definitions": {"n": {"id": "#n", "type": "null"}},
            "$ref": "#n",
        },
        [None],
        [1],
    ),
    (
        {
            "$defs": {
                "dead": {"required": ["x"], "properties": {"x": {"$ref": "#/$defs/dead"}}, **OBJECT}
            },
            "anyOf": [{"$ref": "#/$defs/dead"}, {"const": 1}],
        },
        [1],
        [{}, {"x": {}}],
    ),
    (
        {
            "$schema": D19,
            "$defs": {"n": {"minContains": 2, "contains": {"const": 1}}},
            "$ref": "#/$defs/n",
        },
        [[1, 1], 1],
        [[1]],
    ),
]
