"""Each keyword takes what is valid and nothing else; an independent validator agrees."""

from __future__ import annotations

import itertools
import json
import random
from typing import Any

import pytest

from branchline.runtime.grammar.json_schema.compiler import supported_keywords
from branchline.runtime.grammar.json_schema.lark import COMPACT, Layout
from tests.grammar.json_schema.harness import IN_ORDER, Checker, valid
from tests.grammar.json_schema.table import FORMATS, TABLE, Row


def name(row: object) -> str | None:
    return json.dumps(row)[:60] if isinstance(row, dict) else None


@pytest.mark.parametrize("row", TABLE, ids=[json.dumps(row[0])[:70] for row in TABLE])
def test_accepted_exactly_when_valid(row: Row) -> None:
    schema, good, bad = row
    checker = Checker(schema)
    for value in good:
        assert valid(schema, value), f"the validator refuses {value!r}"
        assert checker.takes(value), f"refuses {value!r}"
    for value in bad:
        assert not valid(schema, value), f"the validator accepts {value!r}"
        assert not checker.takes(value), f"accepts {value!r}"


@pytest.mark.parametrize("row", FORMATS, ids=[row[0]["format"] for row in FORMATS])
def test_formats_beyond_the_validator(row: Row) -> None:
    schema, good, bad = row
    checker = Checker(schema)
    assert [value for value in good if not checker.takes(value)] == []
    assert [value for value in bad if checker.takes(value)] == []


def test_the_table_has_every_keyword() -> None:
    text = json.dumps([schema for schema, _, _ in [*TABLE, *FORMATS]])
    for support in supported_keywords():
        if support.status == "refused":
            continue
        keyword = support.name.removeprefix("format: ")
        assert f'"{keyword}"' in text or keyword in ("iri-reference", "ip-address"), keyword


def test_properties_keep_the_order_of_the_schema_when_asked() -> None:
    schema = {"properties": {"b": {}, "a": {}}, "required": ["a"], "type": "object"}
    in_order, free = Checker(schema, IN_ORDER), Checker(schema)
    assert in_order.takes({"b": 1, "a": 2, "c": 3})
    assert not in_order.takes({"a": 2, "b": 1})
    assert free.takes({"a": 2, "b": 1})
    assert free.takes({"a": 2, "c": 3, "b": 1})
    assert not free.takes({"c": 3, "a": 2}), "others come after what is required"


def test_no_listed_name_comes_twice() -> None:
    checker = Checker({"properties": {"a": {}, "b": {}}, "additionalProperties": False})
    assert checker.takes_text('{"b": 1, "a": 1}')
    assert not checker.takes_text('{"a": 1, "a": 1}')


FEW_NAMES: list[dict[str, Any]] = [
    {"propertyNames": {"enum": ["a", "b", "cc"]}},
    {"propertyNames": {"enum": ["a", "b", "cc", 1]}, "additionalProperties": {"minimum": 0}},
    {"propertyNames": {"enum": ["a", "b", "cc", "long"], "maxLength": 2}},
    {"propertyNames": {"pattern": "^([ab]|c{2})$"}},
    {"patternProperties": {"^[ab]$": {}, "^cc$": {}}, "additionalProperties": False},
    {"allOf": [{"propertyNames": {"enum": ["a", "b", "cc", "d"]}}, {"not": {"required": ["d"]}}]},
]


@pytest.mark.parametrize("limits", [{}, {"maxProperties": 2}, {"minProperties": 2}])
@pytest.mark.parametrize("schema", FEW_NAMES, ids=str)
def test_names_that_are_few_come_once_in_any_order(
    schema: dict[str, Any], limits: dict[str, int]
) -> None:
    least, most = limits.get("minProperties", 0), limits.get("maxProperties", 3)
    checker = Checker({"type": "object", **schema, **limits})
    for count in range(4):
        for names in itertools.permutations(["a", "b", "cc"], count):
            assert checker.takes(dict.fromkeys(names, 1)) == (least <= count <= most), names
    for text in ('{"a": 1, "a": 2}', '{"b": 1, "cc": 1, "b": 1}', '{"d": 1}', '{"a": 1, "d": 1}'):
        assert not checker.takes_text(text)


def test_names_that_are_many_may_still_be_any_of_them() -> None:
    names = [f"name{at}" for at in range(200)]
    checker = Checker({"type": "object", "propertyNames": {"enum": names}})
    assert checker.takes(dict.fromkeys(reversed(names), 1))
    assert not checker.takes({"name200": 1})


@pytest.mark.parametrize(("count", "in_line"), [(64, 0), (65, 3), (75, 15)])
def test_of_many_names_only_the_last_keep_the_order_of_the_schema(count: int, in_line: int) -> None:
    names = [f"p{at}" for at in range(count)]
    schema = {"properties": {name: {"const": 1} for name in names}, "additionalProperties": False}
    checker = Checker(schema)
    free, line = names[: count - in_line], names[count - in_line :]
    choose = random.Random(count)
    for _ in range(20):
        some = choose.sample(names, 8)
        kept = [name for name in line if name in some]
        at = iter(kept)
        ordered = [next(at) if name in kept else name for name in some]
        assert checker.takes(dict.fromkeys(ordered, 1))
        twice = json.dumps(dict.fromkeys(ordered, 1))[:-1] + f', "{ordered[0]}": 1}}'
        assert not checker.takes_text(twice)
    assert checker.takes(dict.fromkeys([*reversed(free), *line], 1))
    assert checker.takes(dict.fromkeys([*line[1:2], free[0], *line[2:]], 1))
    for name in (free[0], names[-1]):
        assert not checker.takes_text(f'{{"{name}": 1, "{name}": 1}}')
    if line:
        assert not checker.takes({line[1]: 1, line[0]: 1})


def test_many_names_that_are_counted_keep_the_order_of_the_schema() -> None:
    properties = {f"p{at}": {"const": 1} for at in range(60)}
    checker = Checker({"properties": properties, "maxProperties": 40})
    assert checker.takes({"p0": 1, "p59": 1, "other": 2})
    assert not checker.takes({"p59": 1, "p0": 1})
    assert checker.takes(dict.fromkeys(list(properties)[:40], 1))
    assert not checker.takes(dict.fromkeys(list(properties)[:41], 1))


VALUE: Any = {"a": [1, {"b": "x"}], "c": None}


@pytest.mark.parametrize(
    ("layout", "texts", "others"),
    [
        (COMPACT, [json.dumps(VALUE, separators=(",", ":"))], [json.dumps(VALUE)]),
        (
            Layout(white=8),
            [
                json.dumps(VALUE, separators=(",", ":")),
                json.dumps(VALUE),
                json.dumps(VALUE, indent=2),
            ],
            [json.dumps(VALUE, indent=9)],
        ),
    ],
)
def test_white_space_is_what_the_layout_says(
    layout: Layout, texts: list[str], others: list[str]
) -> None:
    checker = Checker({"type": "object", "properties": {"a": {}}}, layout)
    assert all(checker.takes_text(text) for text in texts)
    assert not any(checker.takes_text(text) for text in others)
