"""Structural tags against oracles written in Python, over every short text of a few letters."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from branchline.runtime.core.sampling_params import Constraint
from branchline.runtime.errors import InvalidRequest, UnsupportedConstraint
from branchline.runtime.grammar.base import CompiledGrammar
from tests.grammar.conformance.tiny_backends import byte_xgrammar, spells


def const(value: str) -> dict[str, Any]:
    return {"type": "const_string", "value": value}


def tag(begin: str, content: Any, end: Any) -> dict[str, Any]:
    return {"type": "tag", "begin": begin, "content": content, "end": end}


def compiled(format_: Any) -> CompiledGrammar:
    text = json.dumps({"type": "structural_tag", "format": format_})
    return byte_xgrammar().compile(Constraint(kind="structural_tag", text=text))


ONE = tag("<a", const("b"), ">")
TRIGGERED = {"type": "triggered_tags", "triggers": ["<a"], "tags": [ONE]}
SEPARATED = {"type": "tags_with_separator", "tags": [ONE], "separator": ","}


def triggered(text: str, *, once: bool = False) -> bool:
    """Free text in which every "<a" begins "<ab>"."""
    parts = text.split("<a")
    found = len(parts) - 1
    if not all(part.startswith("b>") for part in parts[1:]):
        return False
    return not once or found == 0 or (found == 1 and parts[1] == "b>")


def matches(pattern: str) -> Callable[[str], bool]:
    compiled_pattern = re.compile(pattern, re.DOTALL)
    return lambda text: compiled_pattern.fullmatch(text) is not None


CASES: dict[str, tuple[Any, Callable[[str], bool]]] = {
    "const": (const("<a"), lambda text: text == "<a"),
    "any text": ({"type": "any_text"}, lambda text: True),
    "any text without": (
        {"type": "any_text", "excludes": ["ab", ">>"]},
        lambda text: "ab" not in text and ">>" not in text,
    ),
    "sequence": (
        {"type": "sequence", "elements": [const("a"), {"type": "regex", "pattern": "b{1,2}"}]},
        matches("ab{1,2}"),
    ),
    "or": ({"type": "or", "elements": [const("a"), const("ab")]}, matches("ab?")),
    "optional": ({"type": "optional", "content": const("ab")}, matches("(ab)?")),
    "star": ({"type": "star", "content": const("ab")}, matches("(ab)*")),
    "plus": ({"type": "plus", "content": const("ab")}, matches("(ab)+")),
    "repeat": (
        {"type": "repeat", "min": 1, "max": 2, "content": const("ab")},
        matches("(ab){1,2}"),
    ),
    "repeat without end": (
        {"type": "repeat", "min": 2, "max": -1, "content": const("a")},
        matches("a{2,}"),
    ),
    "grammar with a recursive root": (
        {"type": "grammar", "grammar": 'root ::= "a" root "b" | "<"'},
        matches("<|a<b|aa<bb"),
    ),
    "tag": (ONE, lambda text: text == "<ab>"),
    "tag with several ends": (tag("<", const("a"), [">", "b"]), matches("<a[>b]")),
    "tag with free text": (tag("<", {"type": "any_text"}, ">"), matches("<[^>]*>")),
    "triggered": (TRIGGERED, triggered),
    "triggered from the beginning": (
        {**TRIGGERED, "at_least_one": True},
        lambda text: triggered(text) and text.startswith("<a"),
    ),
    "triggered once": (
        {**TRIGGERED, "stop_after_first": True},
        lambda text: triggered(text, once=True),
    ),
    "separated": (SEPARATED, matches("(<ab>(,<ab>)*)?")),
    "separated, at least one": ({**SEPARATED, "at_least_one": True}, matches("<ab>(,<ab>)*")),
    "separated, one": ({**SEPARATED, "stop_after_first": True}, matches("(<ab>)?")),
}


@pytest.mark.parametrize("name", CASES)
def test_every_short_text_is_judged_as_the_oracle_does(name: str) -> None:
    format_, oracle = CASES[name]
    grammar = compiled(format_)
    longer = ["<ab>,<ab>", "x<ab>y<ab>z", "<ab>,<ab>,", "<ab>é", "é<a", "ababab", "abababab"]
    short = ("".join(t) for n in range(6) for t in itertools.product("<ab>", repeat=n))
    for text in itertools.chain(short, longer):
        assert spells(grammar, text) == oracle(text), text


@pytest.mark.parametrize("format_", [TRIGGERED, SEPARATED], ids=["triggered", "separated"])
def test_the_items_of_tags_are_tags_without_saying_so(format_: dict[str, Any]) -> None:
    short = [{key: part[key] for key in ("begin", "content", "end")} for part in format_["tags"]]
    said, unsaid = compiled(format_), compiled({**format_, "tags": short})
    for text in ("<ab>", "<ab", "x<ab>", "<ab>,<ab>", "<a>"):
        assert spells(unsaid, text) == spells(said, text)


def test_the_older_form_is_read() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    text = json.dumps(
        {
            "structures": [{"begin": "<f=x>", "schema": schema, "end": "</f>"}],
            "triggers": ["<f="],
        }
    )
    grammar = byte_xgrammar().compile(Constraint(kind="structural_tag", text=text))
    assert spells(grammar, 'hm <f=x>{"a": 1}</f> and <f=x>{"a": 2, "b": [true]}</f>')
    for wrong in ('<f=x>{"a": 1.5}</f>', "<f=y>", '<f=x>{"a": 1}', '<f=x>{"b": 1}</f>'):
        assert not spells(grammar, wrong)


@pytest.mark.parametrize(
    ("format_", "kind", "named"),
    [
        ({"type": "token", "token": 1}, UnsupportedConstraint, "type token at #/format"),
        ({"type": "any_text", "max_tokens": 3}, UnsupportedConstraint, "field max_tokens"),
        (
            {"type": "json_schema", "json_schema": {"type": "string", "format": "date"}},
            UnsupportedConstraint,
            "#/format: json_schema: format at #",
        ),
        (
            {"type": "json_schema", "json_schema": {}, "style": "qwen_xml"},
            UnsupportedConstraint,
            "style qwen_xml",
        ),
        (
            {"type": "star", "content": {"type": "regex", "pattern": "a(?=b)"}},
            UnsupportedConstraint,
            "#/format/content: regex: lookahead",
        ),
        ({"type": "grammar", "grammar": "root ::= x"}, InvalidRequest, "no rule named x"),
        ({"type": "const_string"}, InvalidRequest, "needs value"),
        ({"type": "const_string", "value": 1}, InvalidRequest, "not a text"),
        ({"type": "const_string", "value": "\ud800"}, InvalidRequest, "not a text"),
        ({"type": "or", "elements": []}, InvalidRequest, "list of formats"),
        ({**TRIGGERED, "triggers": ["<b"]}, InvalidRequest, "one trigger"),
        ({**TRIGGERED, "tags": [const("<a")]}, InvalidRequest, "tags are formats"),
        ({**TRIGGERED, "at_least_one": 1}, InvalidRequest, "true or false"),
        ({"type": "repeat", "min": 0, "max": 10**9, "content": const("a")}, InvalidRequest, "max"),
        (1, InvalidRequest, "object with a type"),
    ],
)
def test_nothing_is_ignored(format_: Any, kind: type[Exception], named: str) -> None:
    with pytest.raises(kind, match=re.escape(named)):
        compiled(format_)
