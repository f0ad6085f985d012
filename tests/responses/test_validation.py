"""Arguments against schemas: `jsonschema`'s own answers, and a bounded time for every pattern."""

from __future__ import annotations

import time
from typing import Any

import jsonschema
import pytest

from branchline.runtime.errors import InvalidRequest
from branchline.runtime.responses import CallBroken, CallEnd, tool_parser
from branchline.runtime.responses.arguments import ArgumentsError
from branchline.runtime.responses.formats import HERMES
from branchline.runtime.responses.specs import ToolSpec
from branchline.runtime.responses.validation import MAX_KEPT_CHARS, validator

AGAIN = "(a+)+$"
DRAFT4 = "http://json-schema.org/draft-04/schema#"


def tool(**schema: Any) -> ToolSpec:
    return ToolSpec(name="f", parameters={"type": "object", **schema})


def valid(spec: ToolSpec, arguments: dict[str, Any]) -> bool:
    try:
        validator(spec)(arguments)
    except ArgumentsError:
        return False
    return True


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"x": {"pattern": AGAIN}}},
        {"patternProperties": {AGAIN: {"type": "null"}}},
        {"patternProperties": {AGAIN: True}, "additionalProperties": {"type": "null"}},
        {"patternProperties": {AGAIN: True}, "unevaluatedProperties": False},
        {"propertyNames": {"pattern": AGAIN}},
        {"$schema": DRAFT4, "properties": {"x": {"pattern": AGAIN}}},
    ],
    ids=lambda schema: next(name for name in schema if name != "$schema"),
)
def test_a_pattern_that_backtracks_takes_no_time(schema: dict[str, Any]) -> None:
    begun = time.monotonic()
    long = "a" * 40 + "!"
    valid(tool(**schema), {"x": long, long: 1})
    assert time.monotonic() - begun < 5


def test_a_call_with_such_a_text_is_read_at_once() -> None:
    parser = tool_parser(HERMES, [tool(properties={"x": {"type": "string", "pattern": AGAIN}})])
    begun = time.monotonic()
    ends = []
    for text in ("a" * 40 + "!", "a" * 40):
        call = f'<tool_call>\n{{"name": "f", "arguments": {{"x": "{text}"}}}}\n</tool_call>'
        ends += [e for e in parser.feed(call) if isinstance(e, CallBroken | CallEnd)]
    assert [type(end) for end in ends] == [CallBroken, CallEnd]
    assert time.monotonic() - begun < 5


SCHEMAS: list[dict[str, Any]] = [
    {"properties": {"x": {"type": "string", "pattern": "^a+$"}}},
    {"patternProperties": {"^x": {"type": "string"}, "y$": {"minLength": 2}}},
    {"patternProperties": {"^x": True}, "additionalProperties": False},
    {"properties": {"b": True}, "patternProperties": {"y": True}, "additionalProperties": False},
    {"patternProperties": {"^x": True}, "additionalProperties": {"type": "string"}},
    {"properties": {"x": True}, "unevaluatedProperties": False},
    {"allOf": [{"properties": {"x": {"pattern": "b"}}}], "additionalProperties": True},
]
VALUES: list[dict[str, Any]] = [
    {}, {"x": "aa"}, {"x": "ab"}, {"x": 1}, {"y": "a"}, {"xy": "ab"}, {"xy": "a"}, {"b": 1},
    {"x": "aa", "b": "c"}, {"ay": "aa"}, {"x": "b"},
]  # fmt: skip


@pytest.mark.parametrize("schema", SCHEMAS, ids=str)
def test_it_says_what_jsonschema_says(schema: dict[str, Any]) -> None:
    oracle = jsonschema.Draft202012Validator({"type": "object", **schema})
    for value in VALUES:
        assert valid(tool(**schema), value) == oracle.is_valid(value), value


def test_patterns_are_read_as_the_constraint_reads_them() -> None:
    spec = tool(properties={"x": {"pattern": r"^\p{Lu}\d$"}})
    assert valid(spec, {"x": "Ä1"})
    assert not valid(spec, {"x": "ä1"})
    assert not valid(spec, {"x": "Ä\u0661"})  # \d is 0-9 there


def test_what_cannot_be_searched_passes() -> None:
    assert valid(tool(properties={"x": {"pattern": "(?<=a)b"}}), {"x": "c"})
    closed = {"patternProperties": {"(?<=a)b": {"type": "null"}}, "additionalProperties": False}
    assert valid(tool(**closed), {"ab": 1})


def test_a_schema_that_is_none_is_still_refused() -> None:
    with pytest.raises(InvalidRequest, match="no JSON Schema"):
        validator(tool(properties={"x": {"type": "nothing"}}))


def test_a_schema_that_comes_again_is_not_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []
    check_schema = jsonschema.Draft202012Validator.check_schema

    def counted(schema: Any, **options: Any) -> None:
        made.append(schema)
        check_schema(schema, **options)

    monkeypatch.setattr(jsonschema.Draft202012Validator, "check_schema", counted)
    for wanted in ("once", "once", "more"):
        spec = tool(properties={"test": {"const": wanted}})
        assert valid(spec, {"test": wanted}) and not valid(spec, {"test": "other"})
    assert len(made) == 2
    long = tool(properties={"test": {"enum": ["x" * MAX_KEPT_CHARS]}})
    for _ in range(2):
        assert not valid(long, {"test": "other"})
    assert len(made) == 4, "long ones are not kept"
