"""White space in JSON: each policy allows its texts and no others, alone and in compositions."""

from __future__ import annotations

import json
from typing import Any

import pytest

import branchline as bl
from branchline.lang import types
from branchline.lang.errors import InvalidRequest
from tests.lang.typed_values import Point

SCHEMA = {
    "type": "object",
    "properties": {"x": {"type": "number"}, "y": {"type": "number"}},
    "required": ["x", "y"],
    "additionalProperties": False,
}
COMPACT, FIXED, LOOSE = '{"x":1,"y":2.5}', '{"x": 1, "y": 2.5}', '{\n  "x" : 1,\n  "y": 2.5\n}'
ALLOWED = {"compact": {COMPACT}, "fixed": {FIXED}, "flexible": {COMPACT, FIXED, LOOSE}}


@pytest.mark.parametrize("policy", ALLOWED)
@pytest.mark.parametrize("made", [Point, SCHEMA, json.dumps(SCHEMA)], ids=["type", "dict", "text"])
@pytest.mark.parametrize("composed", [False, True])
def test_a_policy_allows_its_texts_and_no_others(policy: Any, made: object, composed: bool) -> None:
    wanted: Any = bl.json_schema(made, whitespace=policy)
    before = "at "
    value = Point(1, 2.5) if made is Point else {"x": 1, "y": 2.5}
    if composed:
        wanted = bl.seq(before, bl.capture("at", wanted))
    for text in (COMPACT, FIXED, LOOSE):
        found = bl.match(wanted, before + text if composed else text)
        assert (found.status == "full") == (text in ALLOWED[policy]), text
        if found.status == "full":
            assert (found.captures["at"] if composed else found.value) == value


def test_the_default_is_that_of_a_bare_type() -> None:
    for made in (Point, SCHEMA):
        assert types.resolve(bl.json_schema(made)).constraint == types.resolve(made).constraint


def test_scalars_are_json_there() -> None:
    assert bl.match(bl.json_schema(str), '"a"').value == "a"
    assert bl.match(bl.json_schema(bool), "true").value is True
    assert bl.match(str, '"a"').value == '"a"'


def test_gen_takes_it_as_a_type_and_by_its_keyword() -> None:
    wanted = bl.json_schema(Point, whitespace="compact")

    @bl.function
    def program(s: bl.State) -> Any:
        s += bl.gen("a", wanted) + " " + bl.gen("b", json_schema=wanted)
        return s["a"], s["b"]

    found = program.run(backend=bl.Mock({"a": COMPACT, "b": COMPACT})).result
    assert found == (Point(1, 2.5), Point(1, 2.5))
    with pytest.raises(bl.ConstraintError, match="does not match"):
        program.run(backend=bl.Mock({"a": FIXED, "b": FIXED}))


def test_parts_of_loosely_written_json_come_as_they_end() -> None:
    wanted = bl.json_schema({"type": "array", "items": SCHEMA}, whitespace="flexible")

    @bl.function
    def program(s: bl.State) -> None:
        s += bl.gen("rows", wanted)

    text = f"[ {LOOSE} ,{COMPACT}]"
    events = list(program.stream(backend=bl.Mock({"rows": text})))
    ready = [e.name for e in events if isinstance(e, bl.VariableReady) and e.name.count("[") == 1]
    assert [name for name in ready if "." not in name] == ["rows[0]", "rows[1]"]
    assert [e.value for e in events if isinstance(e, bl.VariableReady)][-1] == json.loads(text)


def test_a_composition_enforces_all_of_a_schema() -> None:
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer"}, "why": {"type": "string"}},
        "required": ["n"],
        "if": {"properties": {"n": {"minimum": 5}}},
        "then": {"required": ["why"]},
    }
    wanted = bl.seq("so ", schema)
    assert bl.match(wanted, 'so {"n": 4}').status == "full"
    assert bl.match(wanted, 'so {"n": 6}').status == "none"


def test_two_policies_in_one_composition_are_refused() -> None:
    loose = bl.json_schema(Point, whitespace="flexible")
    with pytest.raises(bl.UnsupportedConstraint, match="different policies"):
        types.resolve(bl.seq(loose, " ", Point))


def test_what_is_no_policy_or_no_schema_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="no policy"):
        bl.json_schema(Point, whitespace="none")  # type: ignore[arg-type]
    with pytest.raises(bl.UnsupportedConstraint, match="a schema or a type"):
        bl.json_schema(bl.regex("a"))
    with pytest.raises(InvalidRequest, match="not JSON"):
        bl.json_schema("{")
