"""Tagged objects: telling them apart by their tags is exact, and what makes large unions cheap."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from branchline.runtime.grammar.json_schema.compiler import compile_schema
from branchline.runtime.grammar.json_schema.document import Document
from branchline.runtime.grammar.json_schema.expander import Effort, Expander
from branchline.runtime.grammar.json_schema.tags import Tags
from tests.grammar.json_schema.harness import IN_ORDER, Checker, valid

TAGS: tuple[Any, ...] = (
    {"const": "a"},
    {"enum": ["a", "b"]},
    {"const": 1},
    {"const": 1.0},
    {"enum": [True, None]},
    {"enum": [0, False]},
    {"type": "string"},
    {"const": [1]},
    {"not": {"const": "a"}},
)
VALUES: tuple[Any, ...] = ("a", "b", "c", 1, 0, True, False, None, [1])


def tagged(tag: Any, required: bool) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object", "properties": {"kind": tag}}
    return schema | ({"required": ["kind"]} if required else {})


@pytest.mark.parametrize("keyword", ["oneOf", "anyOf", "allOf"])
@pytest.mark.parametrize("required", [True, False])
def test_combinations_of_tags_are_exact(keyword: str, required: bool) -> None:
    for left, right in itertools.combinations(TAGS, 2):
        schema = {keyword: [tagged(left, required), tagged(right, required)]}
        values = [*({"kind": value} for value in VALUES), {}]
        expected = [valid(schema, value) for value in values]
        if not any(expected):
            continue
        checker = Checker(schema, IN_ORDER)
        assert [checker.takes(value) for value in values] == expected, schema


def test_sets_that_are_apart_have_no_value_in_common() -> None:
    schemas = [tagged(tag, required) for tag in TAGS for required in (True, False)]
    document = Document(json.dumps({"anyOf": schemas}))
    expander, tags = Expander(document, Effort()), Tags(document)
    found = 0
    for left, right in itertools.product(range(len(schemas)), repeat=2):
        one, other = (
            expander.sets(document.child(document.root, "anyOf", at), True, "object")[0]
            for at in (left, right)
        )
        if tags.apart(one, other):
            found += 1
            both = {"allOf": [schemas[left], schemas[right]]}
            assert not any(valid(both, {"kind": value}) for value in VALUES), both
            assert not valid(both, {}), both
    assert found > 20


def test_a_union_of_many_tagged_objects_takes_few_rules() -> None:
    branches = [
        tagged({"const": f"kind {at}"}, True) | {"additionalProperties": False} for at in range(120)
    ]
    grammar = compile_schema(json.dumps({"oneOf": branches}), effort=Effort(symbols=500))
    assert "kind" in grammar and grammar.count("\n") < 500
