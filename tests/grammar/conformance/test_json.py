"""JSON schemas that several backends enforce: the same instances, an independent validator."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from branchline.runtime.core.sampling_params import Constraint, Whitespace
from branchline.runtime.errors import InvalidRequest, UnsupportedConstraint
from branchline.runtime.grammar.base import CompiledGrammar, GrammarBackend, ids_of
from branchline.runtime.grammar.limits import DEFAULT_LIMITS
from tests.grammar.conformance.tiny_backends import byte_llguidance, byte_xgrammar, spells

BACKENDS: dict[str, Callable[[], GrammarBackend]] = {
    "llguidance": byte_llguidance,
    "xgrammar": byte_xgrammar,
}
POLICIES: tuple[Whitespace, ...] = ("fixed", "compact", "flexible")

Pair = tuple[dict[str, Any], Any]
"""A schema and an instance of it, its keys in the schema's order."""


def both(schema: dict[str, Any], value: st.SearchStrategy[Any]) -> st.SearchStrategy[Pair]:
    return value.map(lambda item: (schema, item))


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
SCALARS = st.one_of(
    both({"type": "string"}, TEXTS),
    both({"type": "integer"}, st.integers(-(10**6), 10**6)),
    both({"type": "number"}, st.floats(allow_nan=False, allow_infinity=False)),
    both({"type": "boolean"}, st.booleans()),
    both({"type": ["null", "integer"]}, st.none() | st.integers(0, 9)),
    both({"enum": ["a", 1, None, [1, 2], {"b": 1.5}]}, st.sampled_from(["a", 1, None, [1, 2]])),
    both({"const": 'q"\\\n'}, st.just('q"\\\n')),
    both({"type": "string", "minLength": 2, "maxLength": 3}, st.sampled_from(["é😀", "a\nb"])),
)


def an_object(members: list[tuple[Pair, bool, bool]], closed: bool) -> Pair:
    """members: a pair each, whether it is required, whether it is there."""
    names = [f"k{index}" for index in range(len(members))]
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {name: pair[0] for name, (pair, _, _) in zip(names, members, strict=True)},
        "required": [name for name, (_, must, _) in zip(names, members, strict=True) if must],
    }
    if closed:
        schema["additionalProperties"] = False
    value = {
        name: pair[1]
        for name, (pair, must, there) in zip(names, members, strict=True)
        if must or there
    }
    if not closed:
        value |= {"k": 1, "k00": [None]}
    return schema, value


PAIRS = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.tuples(
            st.lists(st.tuples(inner, st.booleans(), st.booleans()), max_size=3), st.booleans()
        ).map(lambda drawn: an_object(*drawn)),
        st.tuples(inner, st.integers(0, 2)).map(
            lambda drawn: (
                {"type": "array", "items": drawn[0][0], "minItems": drawn[1], "maxItems": 2},
                [drawn[0][1]] * max(drawn[1], 1),
            )
        ),
    ),
    max_leaves=4,
)


def compiled(backend: str, schema: Any, policy: Whitespace = "fixed") -> CompiledGrammar:
    text = json.dumps(schema)
    return BACKENDS[backend]().compile(Constraint(kind="json_schema", text=text, whitespace=policy))


def written(value: Any, policy: Whitespace) -> str:
    if policy == "compact":
        return json.dumps(value, separators=(",", ":"))
    return json.dumps(value, indent=2 if policy == "flexible" else None, ensure_ascii=False)


def valid(schema: Any, value: Any) -> bool:
    return bool(jsonschema.Draft202012Validator(schema).is_valid(value))


def walk(grammar: CompiledGrammar, seed: int) -> str | None:
    """Some text of a grammar: random bytes, ending when it may; None when it gets long."""
    rng = random.Random(seed)
    matcher = grammar.matcher()
    text = bytearray()
    mask = np.zeros((1, 9), dtype=np.int32)
    while len(text) < 200:
        matcher.fill(mask, 0)
        allowed = ids_of(mask[0], 257)
        assert allowed, bytes(text)
        if 256 in allowed and rng.random() < 0.5:
            return text.decode()
        token = rng.choice([token for token in allowed if token != 256] or [256])
        closing = [byte for byte in b'"}]' if byte in allowed]
        if closing and rng.random() < 0.5:
            token = rng.choice(closing)
        if token == 256:
            return text.decode()
        assert matcher.accept(token)
        text.append(token)
    return None


@pytest.mark.parametrize("backend", BACKENDS)
@settings(deadline=None, derandomize=True, max_examples=50)
@given(pair=PAIRS, policy=st.sampled_from(POLICIES), seed=st.integers(0, 99))
def test_instances_are_accepted_and_what_is_written_is_valid(
    backend: str, pair: Pair, policy: Whitespace, seed: int
) -> None:
    schema, value = pair
    grammar = compiled(backend, schema, policy)
    assert valid(schema, value)
    assert spells(grammar, written(value, policy)), (schema, written(value, policy))
    text = walk(grammar, seed)
    if text is not None:
        assert valid(schema, json.loads(text)), (schema, text)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(deadline=None, derandomize=True, max_examples=60)
@given(pair=PAIRS, other=PAIRS)
def test_instances_of_another_schema_are_accepted_only_if_valid(
    backend: str, pair: Pair, other: Pair
) -> None:
    schema, value = pair[0], other[1]
    if not valid(schema, value):
        assert not spells(compiled(backend, schema), written(value, "fixed")), (schema, value)


TREE = {
    "$ref": "#/$defs/node",
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "value": {"type": "integer"},
                "below": {"type": "array", "items": {"$ref": "#/$defs/node"}},
            },
            "required": ["value"],
            "additionalProperties": False,
        }
    },
}


@pytest.mark.parametrize("backend", BACKENDS)
def test_references_may_be_recursive(backend: str) -> None:
    grammar = compiled(backend, TREE)
    assert spells(grammar, '{"value": 1, "below": [{"value": 2}, {"value": 3, "below": []}]}')
    assert not spells(grammar, '{"value": 1, "below": [{"below": []}]}')


@pytest.mark.parametrize("backend", BACKENDS)
def test_flexible_white_space_is_bounded(backend: str) -> None:
    schema = {"type": "array", "items": {"type": "integer"}}
    grammar = compiled(backend, schema, "flexible")
    most = DEFAULT_LIMITS.whitespace_run
    assert spells(grammar, "[" + " " * most + "1\n,\t2 ]")
    assert not spells(grammar, "[" + " " * (most + 1) + "1]")
    for policy in POLICIES:
        assert not spells(compiled(backend, schema, policy), " [1]")


def test_further_properties_never_repeat_a_declared_one() -> None:
    schema = {"type": "object", "properties": {"ab": {"type": "integer"}, "a": {"type": "null"}}}
    grammar = compiled("xgrammar", schema)
    for text in ('{"ab": "x"}', '{"x": 1, "ab": 2}', '{"ab": 1, "ab": 2}', '{"\\u0061": 1}'):
        assert not spells(grammar, text)
    for text in (
        '{"abc": "x"}',
        '{"ab": 1, "": 2, "b": 3}',
        '{"ab": 1, "a": null, "aa": {}}',
        "{}",
    ):
        assert spells(grammar, text)


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"type": "string", "pattern": "a"}, "pattern at #"),
        ({"type": "object", "properties": {"a/b": {"type": "integer", "minimum": 1}}}, "a~1b"),
        ({"type": "string", "format": "date"}, "format at #"),
        ({"oneOf": [{"type": "string"}]}, "oneOf without type at #"),
        ({"anyOf": [{"type": "string"}], "minLength": 1}, "anyOf beside minLength"),
        ({"$ref": "#/$defs/a", "type": "string", "$defs": {"a": {}}}, "ref beside type"),
        ({"$ref": "http://example.org/a"}, "ref 'http"),
        ({"type": "object", "required": ["a"]}, "required 'a'"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems at #"),
        ({"type": "array", "items": [{}]}, "no object at #/items"),
        ({"type": "object", "properties": {"a": False}}, "false at #/properties/a"),
        ({"type": "text"}, "type 'text'"),
        ({"x-thing": 1}, "x-thing without type"),
        ({"$ref": "#"}, "# can never end"),
        ({"anyOf": [{"type": "null"}, {"$ref": "#"}]}, "# can stand for itself"),
        (
            {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
            "# can never end",
        ),
    ],
)
def test_what_a_rewriting_does_not_cover_is_refused_by_name(schema: Any, named: str) -> None:
    with pytest.raises(UnsupportedConstraint, match=named):
        compiled("xgrammar", schema)


@pytest.mark.parametrize("text", ["{", '{"enum": [NaN]}', '{"$ref": "#/a"}', "[" * 9999])
def test_malformed_schemas(text: str) -> None:
    with pytest.raises(InvalidRequest):
        byte_xgrammar().compile(Constraint(kind="json_schema", text=text))
