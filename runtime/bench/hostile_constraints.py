"""Constraints made to hurt: each must end in a grammar or a clear error, and hurt nobody else.

Knows no backend. `feed` is text that keeps the grammar busy once it is compiled.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from branchline.runtime.core.sampling_params import Constraint, ConstraintKind


class Hostile(NamedTuple):
    """A name, the constraint, and text to feed to it as far as it goes."""

    name: str
    constraint: Constraint
    feed: str


def _nested_arrays(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


def _laughs(count: int) -> dict[str, Any]:
    """Each definition is a pair of the next one: 2^count values."""
    defs: dict[str, Any] = {f"d{count}": {"type": "integer"}}
    for index in range(count):
        ref = {"$ref": f"#/$defs/d{index + 1}"}
        defs[f"d{index}"] = {
            "type": "object",
            "properties": {"a": ref, "b": ref},
            "required": ["a", "b"],
            "additionalProperties": False,
        }
    return {"$ref": "#/$defs/d0", "$defs": defs}


def _words(count: int) -> list[str]:
    return [f"w{index * 7919 % 100_003}x{index}" for index in range(count)]


def _patterns() -> dict[str, str]:
    return {
        "repeats of repeats": "((x{100}){100}){100}",
        "bounded repeats of repeats": "((a{1,100}){1,100}){1,10}",
        "five levels of repeats": "((((a{1,99}){1,99}){1,99}){1,99}){1,99}",
        "a|a starred": "(a|a)*" * 50 + "b",
        "a|aa starred": "(a|aa)*" * 50,
        "100,000 times": "a{1,100000}",
        "100,000 of a class": "[a-z]{0,100000}b",
        "a billion times": "a{1,1000000000}",
        "subset construction": ".*a.{12}",
        "subset construction, larger": "(.*a.{30}){9}",
        "two long runs": r"\w{1,3000}@\w{1,3000}",
        "classic backtracking": "(a+)+b",
        "classic backtracking, twice": "(x+x+)+y",
        "words and spaces": r"(\w+\s?)*z",
        "NUL bytes": "\x00{1,9}a",
        "deep groups": "(" * 400 + "a" + ")" * 400,
        "3,000 words": "|".join(f"x{index}y" for index in range(3000)),
        "too long": "a" * 70_000,
        "unclosed": "(" * 50_000,
    }


def _schemas() -> dict[str, Any]:
    text = {"type": "string"}
    optional = {f"p{index}": text for index in range(2000)}
    return {
        "5,000-way enum": {"enum": _words(5000)},
        "20,000-way enum": {"enum": list(range(20_000))},
        "a megabyte": {"enum": ["x" * 1_000_000]},
        "arrays 30 deep": _nested_arrays(30),
        "arrays 1,000 deep": _nested_arrays(400),
        "2^30 values": _laughs(30),
        "reference loop": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}},
        "recursion without end": {
            "type": "object",
            "properties": {"a": {"$ref": "#"}},
            "required": ["a"],
        },
        "recursive tree": {
            "type": "object",
            "properties": {"a": {"type": "array", "items": {"$ref": "#"}}},
        },
        "2,000 optional properties": {"type": "object", "properties": optional},
        "a million characters": {"type": "string", "maxLength": 1_000_000},
        "a billion items": {"type": "array", "items": text, "minItems": 10**9},
        "catastrophic pattern": {"type": "string", "pattern": "^(a+)+$"},
        "repeats in a pattern": {"type": "string", "pattern": "^((x{100}){100}){100}$"},
        "starred choices in a pattern": {"type": "string", "pattern": "(a|a)*" * 30 + "b"},
        "NUL in a pattern": {"type": "string", "pattern": "^\x00+$"},
        "NUL in an enum": {"enum": ["\x00", "a\x00b"]},
        "500 branches": {
            "anyOf": [{"type": "object", "properties": {f"k{i}": text}} for i in range(500)]
        },
        "all of 100": {"allOf": [{"type": "integer", "minimum": index} for index in range(100)]},
    }


def _grammars() -> list[tuple[str, ConstraintKind, str, str]]:
    words = " | ".join(f'"{word}"' for word in _words(2000))
    return [
        ("ambiguous", "ebnf", 'root ::= s\ns ::= s s s | s s | "a"', "a" * 200),
        ("nullable", "ebnf", 'root ::= x x x x x x\nx ::= "a"? "a"? y\ny ::= "a"*', "a" * 200),
        ("long run", "ebnf", "root ::= [a-z ]{1,1000}", "some words of text " * 5),
        ("very long run", "ebnf", "root ::= [a-z ]{1,100000}", "some words of text " * 5),
        ("runs of runs", "ebnf", "root ::= (([a-z]{1,300}){1,300}){1,300}", "text" * 5),
        ("2,000 alternatives", "ebnf", f"root ::= {words}", "w"),
        ("stands for itself", "ebnf", 'root ::= root | "a"', "a"),
        ("never ends", "ebnf", 'root ::= "a" root', "a"),
        ("too many rules", "ebnf", "\n".join(f'r{i} ::= "a"' for i in range(3000)), "a"),
        ("ambiguous", "lark", 'start: s\ns: s s s | s s | "a"', "a" * 200),
        ("repeats of repeats", "lark", "start: /((x{100}){100}){100}/", "x" * 50),
        ("recursion through nothing", "lark", 'start: start? start? "a"?', "a" * 50),
        (
            "200 tags",
            "structural_tag",
            json.dumps(
                {
                    "structures": [
                        {"begin": f"<t{i}>", "schema": {"type": "string"}, "end": f"</t{i}>"}
                        for i in range(200)
                    ],
                    "triggers": ["<t"],
                }
            ),
            "free text <t1",
        ),
        (
            "deep tags",
            "structural_tag",
            '{"format":' + '{"type":"star","content":' * 200 + "{}" + "}" * 201,
            "",
        ),
    ]


def corpus() -> list[Hostile]:
    """All of them, always in the same order."""
    found = [
        Hostile(f"regex: {name}", Constraint(kind="regex", text=pattern), "ax" * 40)
        for name, pattern in _patterns().items()
    ]
    found += [
        Hostile(
            f"json_schema: {name}",
            Constraint(kind="json_schema", text=json.dumps(schema)),
            '{"a": [{"a": [{"a": "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa',
        )
        for name, schema in _schemas().items()
    ]
    found += [
        Hostile(
            f"choices: {count}", Constraint(kind="choices", text=json.dumps(_words(count))), "w"
        )
        for count in (5000, 50_000)
    ]
    found += [
        Hostile(f"{kind}: {name}", Constraint(kind=kind, text=text), feed)
        for name, kind, text, feed in _grammars()
    ]
    return found
