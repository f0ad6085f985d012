"""Rows of the table for texts, numbers and other single values."""

from __future__ import annotations

from typing import Any

Row = tuple[Any, list[Any], list[Any]]
"""A schema, values that are valid, values that are not."""

D4 = "http://json-schema.org/draft-04/schema#"

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
    (
        {"$schema": D4, "enum": [[1, {"a": "x"}]]},
        [[1, {"a": "x"}]],
        [[2, {"a": "x"}], [1, {"a": "y"}], [1, {}], 1],
    ),
    ({"$schema": D4, "not": {"enum": [[1], {"a": 2}]}}, [[2], {"a": 1}, [], 1], [[1], {"a": 2}]),
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
