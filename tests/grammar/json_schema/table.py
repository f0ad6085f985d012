"""Small schemas with values that are valid and values that are not, at least one per keyword."""

from __future__ import annotations

from typing import Any

Row = tuple[Any, list[Any], list[Any]]

D4 = "http://json-schema.org/draft-04/schema#"
D6 = "http://json-schema.org/draft-06/schema#"
D7 = "http://json-schema.org/draft-07/schema#"
D19 = "https://json-schema.org/draft/2019-09/schema"
D20 = "https://json-schema.org/draft/2020-12/schema"

OBJECT = {"type": "object"}
TREE = {
    "type": "object",
    "properties": {"v": {"type": "integer"}, "kids": {"items": {"$ref": "#"}}},
}

TYPES: list[Row] = [
    (True, [1, "a", None, [], {}, [{"a": [1.5]}]], []),
    ({}, [1, "é", False, {"a": {"b": None}}], []),
    ({"type": "null"}, [None], [0, False, "", [], {}]),
    ({"type": "boolean"}, [True, False], [None, 0, "true"]),
    ({"type": "integer"}, [0, -1, 12345678901234567890], [1.5, "1", None]),
    ({"type": "number"}, [0, -1.5, 1e20, 1e-7], ["1", None, True]),
    ({"type": "string"}, ["", 'a\n"\\é😀\x01\x7f'], [1, None, []]),
    ({"type": "array"}, [[], [1, [2], {}]], [{}, "[]"]),
    ({"type": "object"}, [{}, {"a": {"b": 1}}], [[], None]),
    ({"type": ["string", "null"]}, ["a", None], [1, False]),
    ({"type": ["integer", "array"]}, [3, []], [3.5, {}]),
    (
        {"enum": [1, "a", None, True, [1, {"b": 2}], {"c": []}]},
        [1, "a", None, True, [1, {"b": 2}], {"c": []}],
        [2, "b", False, [1], [1, {"b": 3}], {"c": [1]}, {}, {"c": [], "d": 1}],
    ),
    ({"enum": ["é", 'a"b', "\n", ""]}, ["é", 'a"b', "\n", ""], ["e", "ab", " "]),
    ({"enum": [1.5, -2, 100]}, [1.5, -2, 100], [1, 2, 15, 1.25]),
    ({"enum": [1, "1"], "type": "string"}, ["1"], [1]),
    (
        {"const": {"a": [1, None], "b": "x"}},
        [{"a": [1, None], "b": "x"}],
        [{"a": [1], "b": "x"}, {"a": [1, None]}, {"a": [1, None], "b": "x", "c": 1}],
    ),
    ({"const": 1.5}, [1.5], [1, 2, "1.5"]),
    ({"const": False}, [False], [True, 0, None]),
    ({"$schema": D4, "const": 1}, [1, 2, "a"], []),
]

NUMBERS: list[Row] = [
    ({"type": "integer", "minimum": 3}, [3, 4, 10, 99, 1000], [2, 0, -3, -30]),
    ({"type": "integer", "maximum": -7}, [-7, -8, -10, -100], [-6, 0, 7, 70]),
    ({"type": "integer", "minimum": -12, "maximum": 105}, [-12, -9, 0, 99, 105], [-13, 106, 1000]),
    ({"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 10}, [1, 9], [0, 10, 11, -1]),
    ({"minimum": 1.25}, [1.25, 1.3, 2, 10, "a", None], [1.24, 1, 0, -2.5]),
    ({"maximum": -0.5}, [-0.5, -0.51, -1, -10.25], [-0.49, 0, 0.5]),
    (
        {"type": "number", "exclusiveMinimum": -0.5, "exclusiveMaximum": 0.5},
        [0, 0.25, -0.25, 0.499, 1e-7],
        [0.5, -0.5, 1, -1],
    ),
    ({"type": "number", "minimum": 0}, [0, 0.1, 12.75, 1e18], [-0.1, -1]),
    ({"type": "number", "maximum": 2.5, "exclusiveMinimum": 2}, [2.5, 2.25], [2, 2.51, 2.0001e3]),
    ({"$schema": D4, "minimum": 3, "exclusiveMinimum": True}, [4, 3.5, "x"], [3, 2]),
    ({"$schema": D4, "maximum": 3, "exclusiveMaximum": True}, [2, 2.5], [3, 4]),
    ({"type": "integer", "multipleOf": 5}, [0, 5, -15, 100], [1, 3, 12, -7]),
    ({"type": "integer", "multipleOf": 3}, [0, 3, 9, 300], [1, 2, 10, 100]),
    ({"type": "integer", "multipleOf": 7, "minimum": 7, "maximum": 700}, [7, 14, 700], [0, 8, 707]),
    ({"type": "integer", "multipleOf": 7, "minimum": 15}, [21, 28, 7000], [14, 22, 7]),
    ({"multipleOf": 0.5}, [0, 0.5, 1, -2.5], [0.25, 1.1]),
    ({"type": "number", "multipleOf": 0.25, "minimum": 0, "maximum": 1}, [0, 0.25, 1], [0.3, 1.25]),
    ({"type": "number", "multipleOf": 0.01, "minimum": 0}, [0.5, 3, 7.25], [0.125, -0.5]),
    (
        {"type": "integer", "maximum": 9223372036854775807},
        [9223372036854775807],
        [9223372036854775808],
    ),
    ({"minimum": 5, "maximum": 5}, [5, "a"], [4, 6]),
    ({"type": "number", "not": {"type": "integer"}}, [0.5, -1.25], [1, 0, -3]),
    (
        {"type": "number", "not": {"type": "integer"}, "minimum": 1, "maximum": 2},
        [1.5],
        [1, 2, 3.5],
    ),
    ({"type": "integer", "not": {"minimum": 3, "maximum": 5}}, [2, 6], [3, 4, 5]),
    ({"type": "integer", "not": {"enum": [0, 7]}}, [1, 6, 8, -1], [0, 7]),
]

STRINGS: list[Row] = [
    ({"type": "string", "minLength": 2}, ["ab", "é😀", "\n\n"], ["", "a", "😀"]),
    ({"type": "string", "maxLength": 2}, ["", "ab", "é😀", '"\\'], ["abc", "😀😀😀"]),
    ({"minLength": 1, "maxLength": 3}, ["a", "abc", 7], ["", "abcd"]),
    ({"type": "string", "pattern": "b"}, ["b", "abc"], ["", "ac"]),
    ({"type": "string", "pattern": "^a"}, ["a", "ab"], ["ba", ""]),
    ({"type": "string", "pattern": "a$"}, ["a", "ba"], ["ab", ""]),
    ({"type": "string", "pattern": "^a$|b"}, ["a", "b", "xbx"], ["aa", ""]),
    ({"type": "string", "pattern": "^\\S+@\\S+$"}, ["a@b"], ["a b@c", "@"]),
    ({"type": "string", "pattern": '^[^"\\\\]*$'}, ["", "ab", "é"], ['"', "\\"]),
    ({"type": "string", "pattern": "^\\d{3}-\\w+$"}, ["123-a_1"], ["12-a", "123-"]),
    ({"type": "string", "pattern": "^(?!foo).*$"}, ["bar", "fo", ""], ["foo", "foobar"]),
    ({"type": "string", "pattern": "^(?=.*[a-z])(?=.*[0-9]).{3,}$"}, ["ab1"], ["abc", "a1", "123"]),
    ({"type": "string", "pattern": "\\bcat\\b"}, ["cat", "a cat!"], ["cats", "scat"]),
    ({"type": "string", "pattern": "^a?\\Bb"}, ["ab"], ["b", "cb"]),
    ({"type": "string", "pattern": "^[\\u00e0-\\u00ff]+$"}, ["é", "éà"], ["e", ""]),
    ({"type": "string", "pattern": "^(?:ab|c){2,3}?$"}, ["abab", "cabc"], ["ab", "cccc"]),
    ({"type": "string", "pattern": "^\\t\\n$"}, ["\t\n"], ["tn", "\\t\\n"]),
    ({"type": "string", "pattern": "^x.y$"}, ["xay", "x\ty"], ["x\ny", "xy"]),
    ({"type": "string", "pattern": "^a*$", "maxLength": 2}, ["", "aa"], ["aaa", "b"]),
    ({"type": "string", "allOf": [{"pattern": "a"}, {"pattern": "b"}]}, ["ab", "ba"], ["a", "b"]),
    ({"type": "string", "not": {"pattern": "^a"}}, ["", "b", "ba"], ["a", "ab"]),
    ({"type": "string", "not": {"enum": ["a", "b"]}}, ["", "c", "ab"], ["a", "b"]),
    ({"type": "string", "not": {"minLength": 2}}, ["", "a"], ["ab", "abc"]),
    (
        {"type": "string", "format": "date"},
        ["2024-02-29", "2023-12-31"],
        ["2023-02-29", "2024-13-01", "24-01-01"],
    ),
    (
        {"type": "string", "format": "ipv4"},
        ["1.2.3.4", "255.0.0.1"],
        ["256.1.1.1", "1.2.3", "01.2.3.4"],
    ),
    (
        {"type": "string", "format": "ipv6"},
        ["::1", "fe80::1:2", "1:2:3:4:5:6:7:8", "::"],
        [":::", "1:2", "1::2::3", "12345::"],
    ),
    (
        {"type": "string", "format": "uuid"},
        ["2eb8aa08-aa98-11ea-b4aa-73b441d16380"],
        ["2eb8aa08", ""],
    ),
    ({"type": "string", "format": "email"}, ["a@b.c", "x.y+z@example.com"], ["a", "a.b.c"]),
    ({"type": "string", "format": "no such format"}, ["x", ""], [1]),
    ({"format": "date"}, [1, None, "2024-01-01"], ["x"]),
    ({"type": "string", "not": {"format": "ipv4"}}, ["x", "1.2.3"], ["1.2.3.4"]),
]

FORMATS: list[Row] = [
    (
        {"type": "string", "format": "time"},
        ["12:00:00Z", "23:59:60Z", "01:02:03.5+01:00"],
        ["12:00", "24:00:00Z", "12:00:00"],
    ),
    (
        {"type": "string", "format": "date-time"},
        ["2024-02-29T12:00:00Z", "2024-01-01T00:00:00.1-08:00"],
        ["2024-01-01", "2023-02-29T00:00:00Z", "2024-01-01 00:00:00Z"],
    ),
    (
        {"type": "string", "format": "duration"},
        ["P1Y2M3D", "PT1H", "P2W", "P1DT12H"],
        ["P", "PT", "1Y", "P1YT", "P1W2D"],
    ),
    (
        {"type": "string", "format": "hostname"},
        ["example.com", "a-b", "1.2"],
        ["-a", "a_b", "a..b", ""],
    ),
    (
        {"type": "string", "format": "uri"},
        ["http://a.b/c?d#e", "urn:x:y", "mailto:a@b.c", "http://[::1]:80/"],
        ["a", "//x", "http://a b", "1x:y", "http://[1]/"],
    ),
    (
        {"type": "string", "format": "uri-reference"},
        ["", "/a/b", "//x", "a?b", "http://x"],
        ["a b", "\\x", ":a", "%zz"],
    ),
    (
        {"type": "string", "format": "uri-template"},
        ["http://a/{b}", "{?x,y*}", "a"],
        ["{", "{}", "{a"],
    ),
    ({"type": "string", "format": "iri"}, ["http://é/ü"], ["é", "http://a b"]),
    ({"type": "string", "format": "json-pointer"}, ["", "/a/~0~1"], ["a", "/~2"]),
    ({"type": "string", "format": "relative-json-pointer"}, ["0", "1/a", "2#"], ["", "/a", "01"]),
    (
        {"type": "string", "format": "regex"},
        ["^a+(b|[^c-])*$", "\\d{2,}", ""],
        ["(", "[", "*a", "a**", ")"],
    ),
]

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

TABLE = [*TYPES, *NUMBERS, *STRINGS, *ARRAYS, *OBJECTS, *COMBINED, *REFERENCES]
