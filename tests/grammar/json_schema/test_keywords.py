"""Each keyword takes what is valid and nothing else; an independent validator agrees."""

from __future__ import annotations

import json
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
