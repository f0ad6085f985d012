"""Random schemas: a value is accepted exactly when an independent validator says it is valid."""

from __future__ import annotations

import itertools
import json
from typing import Any

from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from jsonschema.validators import validator_for

from branchline.runtime.errors import UnsupportedConstraint
from tests.grammar.json_schema.harness import IN_ORDER, Checker, has_twice, valid
from tests.grammar.json_schema.table_of_structures import D6, D7, D19, D20
from tests.grammar.json_schema.table_of_values import D4

NAMES = ("a", "b", "c", "x-1")
PATTERNS = ("^a", "b$", "^[ab]*$", "a|x", "^x-", "^.{1,2}$", "^(?!a)", "[^a]")
numbers = st.sampled_from((-3, -1, 0, 1, 2, 3, 5, 10, 100, 0.5, 1.5, -0.25))
scalars = st.one_of(
    numbers,
    st.sampled_from(("", "a", "b", "ab", "aab", "x-1", "é", '"', "zz9")),
    st.sampled_from((True, False, None)),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(NAMES), inner, max_size=3)
    ),
    max_leaves=6,
)
names_of = st.sampled_from(NAMES)
names = st.lists(names_of, min_size=1, max_size=2, unique=True)
types = st.sampled_from(("null", "boolean", "integer", "number", "string", "array", "object"))
counts = st.integers(0, 3)
FINITE = {"enum": [1, "a", None, True]}


def keywords(inner: st.SearchStrategy[Any]) -> dict[str, st.SearchStrategy[Any]]:
    """What may stand beside each keyword's name."""
    several = st.lists(inner, min_size=1, max_size=3)
    of_names = st.dictionaries(st.sampled_from(NAMES), inner, min_size=1, max_size=3)
    return {
        "type": st.one_of(types, st.lists(types, min_size=1, max_size=3, unique=True)),
        "enum": st.lists(values, min_size=1, max_size=3),
        "const": values,
        "minimum": numbers,
        "maximum": numbers,
        "exclusiveMinimum": numbers,
        "exclusiveMaximum": numbers,
        "multipleOf": st.sampled_from((1, 2, 5, 0.5, 3, 0.25)),
        "minLength": counts,
        "maxLength": counts,
        "pattern": st.sampled_from(PATTERNS),
        "properties": of_names,
        "patternProperties": st.dictionaries(st.sampled_from(PATTERNS), inner, max_size=2),
        "additionalProperties": st.one_of(st.just(False), inner),
        "required": names,
        "propertyNames": st.sampled_from(({"maxLength": 1}, {"pattern": "^a"}, {"enum": ["b"]})),
        "minProperties": counts,
        "maxProperties": counts,
        "dependentRequired": st.dictionaries(st.sampled_from(NAMES), names, max_size=2),
        "dependentSchemas": st.dictionaries(st.sampled_from(NAMES), inner, max_size=1),
        "prefixItems": st.lists(inner, min_size=1, max_size=2),
        "items": inner,
        "minItems": counts,
        "maxItems": counts,
        "contains": inner,
        "maxContains": counts,
        "allOf": several,
        "anyOf": several,
        "oneOf": several,
        "not": inner,
        "if": inner,
        "then": inner,
        "else": inner,
    }


@st.composite
def schemas(draw: st.DrawFn, depth: int = 0) -> Any:
    """A schema of a few keywords."""
    if depth > 2 or (depth and draw(st.integers(0, 5)) == 0):
        return draw(st.sampled_from((True, False, {"type": "string"}, {"const": 1}, FINITE)))
    possible = keywords(schemas(depth + 1))
    chosen = draw(st.lists(st.sampled_from(sorted(possible)), min_size=1, max_size=3, unique=True))
    return {keyword: draw(possible[keyword]) for keyword in chosen}


def compiled(schema: object, **how: Any) -> Checker:
    try:
        return Checker(schema, **how)
    except UnsupportedConstraint as error:
        assume(error is None)
        raise


COMMON = settings(
    deadline=None,
    derandomize=True,
    max_examples=120,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
)
FEWER = settings(COMMON, max_examples=60)


@COMMON
@given(schemas(), st.lists(values, min_size=6, max_size=6))
def test_accepts_exactly_what_is_valid(schema: Any, some: list[Any]) -> None:
    checker = compiled(schema)
    for value in some:
        assert checker.takes_reordered(value) == valid(schema, value), value


@COMMON
@given(schemas(), st.lists(values, min_size=6, max_size=6))
def test_in_the_order_of_the_schema_nothing_invalid_is_accepted(
    schema: Any, some: list[Any]
) -> None:
    checker = compiled(schema, layout=IN_ORDER)
    for value in some:
        assert checker.takes_reordered(value) == valid(schema, value), value


@COMMON
@given(schemas(), st.sampled_from((D4, D6, D7, D19, D20)), st.lists(values, min_size=6, max_size=6))
def test_in_no_draft_anything_invalid_is_accepted(schema: Any, draft: str, some: list[Any]) -> None:
    assume(isinstance(schema, dict))
    schema = {"$schema": draft, **schema}
    validator = validator_for(schema)
    assume(validator(validator.META_SCHEMA).is_valid(schema))  # as the draft has its keywords
    checker = compiled(schema)
    for value in some:
        assert valid(schema, value) or not checker.takes_reordered(value), value


@st.composite
def dependent(draw: st.DrawFn) -> dict[str, Any]:
    """Objects whose names want, bar and count each other."""
    rules = st.one_of(
        st.builds(lambda some: {"not": {"required": some}}, names),
        st.builds(lambda some: {"dependentRequired": some}, st.dictionaries(names_of, names)),
        st.builds(lambda some: {"anyOf": [{"required": [name]} for name in some]}, names),
        st.builds(lambda count: {"minProperties": count}, counts),
        st.builds(lambda count: {"maxProperties": count}, counts),
    )
    return {
        "type": "object",
        "properties": {name: {"const": None} for name in NAMES},
        "allOf": draw(st.lists(rules, min_size=2, max_size=5)),
        "additionalProperties": draw(st.sampled_from((False, {"const": 1}))),
    }


@FEWER
@example(
    {
        "type": "object",
        "properties": {name: {"const": None} for name in NAMES},
        "minProperties": 3,
        "dependentRequired": {"c": ["a"]},
        "additionalProperties": False,
    },
    True,
)
@given(dependent(), st.booleans())
def test_names_that_depend_on_each_other_come_in_any_order_and_never_to_a_dead_end(
    schema: dict[str, Any], in_order: bool
) -> None:
    checker = compiled(schema, **({"layout": IN_ORDER} if in_order else {}))
    for count in range(len(NAMES) + 1):
        for some in itertools.permutations(NAMES, count):
            value = dict.fromkeys(some)
            if not in_order or [name for name in NAMES if name in some] == list(some):
                assert checker.takes(value) == valid(schema, value), value
    for seed in range(6):
        text = checker.walk(seed, most=100)
        assert text is None or has_twice(text) or valid(schema, json.loads(text)), text


@st.composite
def containing(draw: st.DrawFn) -> dict[str, Any]:
    """Arrays of few values whose items are counted."""
    some = st.sampled_from(({"const": 1}, {"enum": [1, 2]}, {"const": 3}, {"enum": [2, 3]}))
    contains = st.fixed_dictionaries(
        {"contains": some}, optional={"minContains": counts, "maxContains": counts}
    )
    other = {"prefixItems": st.lists(some, max_size=2), "minItems": counts, "maxItems": counts}
    schema = draw(st.fixed_dictionaries({}, optional=other))
    every = {"enum": [1, 2, 3]}
    schema["items"] = draw(st.one_of(some, st.just(every), st.just(every)))
    return {"type": "array", "allOf": draw(st.lists(contains, min_size=1, max_size=3)), **schema}


@FEWER
@given(containing())
def test_items_that_are_counted_never_come_to_a_dead_end(schema: dict[str, Any]) -> None:
    checker = compiled(schema)
    for count in range(5):
        for some in itertools.product((1, 2, 3), repeat=count):
            assert checker.takes(list(some)) == valid(schema, list(some)), some
    for seed in range(6):
        text = checker.walk(seed, most=100)
        assert text is None or valid(schema, json.loads(text)), text


@COMMON
@given(schemas(), st.booleans(), st.integers(0, 1000))
def test_random_walks_end_in_what_is_valid(schema: Any, in_order: bool, seed: int) -> None:
    checker = compiled(schema, **({"layout": IN_ORDER} if in_order else {}))
    text = checker.walk(seed, most=100)
    if text is not None and not has_twice(text) and len(text) < 40:
        assert valid(schema, json.loads(text)), text
