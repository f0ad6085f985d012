"""The table of bounds: each is named when it is exceeded."""

from __future__ import annotations

import json
from typing import Any

import pytest

from branchline.runtime.core.sampling_params import Constraint, ConstraintKind
from branchline.runtime.errors import InvalidRequest, UnsupportedConstraint
from branchline.runtime.grammar.limits import (
    DEFAULT_LIMITS,
    Limits,
    check_document,
    check_mask_time,
    check_text,
    is_cheap,
    repeat_product,
)
from branchline.runtime.grammar.regex_dialect import to_automaton_regex


@pytest.mark.parametrize(
    ("pattern", "product"),
    [
        ("abc", 1),
        ("a*b+c?", 1),
        ("a{3}b{4}", 4),
        ("(a{3}){4}", 12),
        ("(a{3}|b{5}c){1,4}", 20),
        ("((x{100}){100}){100}", 1_000_000),
        ("(a{2}){3}(b{4}){5}", 20),
        ("(a{2,})*", 2),
        (r"(\){9}){2}", 18),
        (r"([)]{9}){2}", 18),
        (r"(\{9}){2}", 2),
        ("a{x", 1),
        ("", 1),
    ],
)
def test_nested_repetitions_multiply(pattern: str, product: int) -> None:
    assert repeat_product(pattern) == product
    rewritten = to_automaton_regex(pattern)
    assert repeat_product(rewritten) == product, rewritten


@pytest.mark.parametrize("text", ["){2}{3}", "((((", "]]]{9}", "[{9}", "{", "}{", "\\", "(a{2}"])
def test_texts_of_other_dialects_are_looked_at_as_far_as_possible(text: str) -> None:
    assert repeat_product(text) >= 1


@pytest.mark.parametrize(
    ("document", "name"),
    [
        (json.loads("[" * 65 + "]" * 65), "depth"),
        (list(range(20_001)), "json_values"),
        ([[0] * 9000] * 3, "json_values"),
        ({"properties": {"a": {"enum": list(range(10_001))}}}, "enum_values"),
        ({"items": {"pattern": "((a{99}){99}){99}"}}, "repeat_product"),
        ({"patternProperties": {"((a{99}){99}){99}": {}}}, "repeat_product"),
    ],
)
def test_documents(document: Any, name: str) -> None:
    with pytest.raises(InvalidRequest, match=f"limit {name}"):
        check_document("json_schema", document)


def test_what_is_within_the_bounds_passes() -> None:
    check_document("json_schema", {"enum": list(range(10_000)), "pattern": 1, "a": [None, True]})
    check_document("json_schema", json.loads("[" * 64 + "]" * 64))


@pytest.mark.parametrize(
    ("kind", "name"),
    [("regex", "pattern_bytes"), ("lark", "pattern_bytes"), ("json_schema", "document_bytes")],
)
def test_sizes_count_bytes(kind: ConstraintKind, name: str) -> None:
    limits = Limits(pattern_bytes=10, document_bytes=10)
    check_text(Constraint(kind=kind, text="é" * 5), limits)
    for text in ("é" * 6, "a" * 11):
        with pytest.raises(InvalidRequest, match=f"limit {name}"):
            check_text(Constraint(kind=kind, text=text), limits)


def test_slow_first_masks_are_refused() -> None:
    constraint = Constraint(kind="regex", text="a")
    check_mask_time(constraint, DEFAULT_LIMITS.mask_s / 2)
    with pytest.raises(UnsupportedConstraint, match="limit mask_s"):
        check_mask_time(constraint, 2 * DEFAULT_LIMITS.mask_s)


@pytest.mark.parametrize(
    ("kind", "text", "cheap"),
    [
        ("regex", r"\d{4}-\d{2}-\d{2}", True),
        ("regex", "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", True),
        ("regex", "a{1,20000}", False),
        ("regex", "((a{100}){100}){100}", False),
        ("lark", "x" * 5000, False),
        ("ebnf", 'root ::= "a"', False),
        ("structural_tag", "{}", False),
        ("json_schema", '{"maxLength": 1000}', True),
        ("json_schema", '{"maxLength": 1000000}', False),
        # Numbers that repeat nothing.
        ("regex", "([13579][26]|[02468][048])00|12345", True),
        ("json_schema", '{"minimum": -1000000000000000000, "maximum": 1000000000000000000}', True),
        ("json_schema", '{"exclusiveMaximum": 9007199254740993, "maxItems": 100000}', False),
        ("json_schema", '{"pattern": "[02468]{2}"}', True),
        ("json_schema", '{"pattern": "a{1,20000}"}', False),
        ("choices", '["90210", "a{100000}"]', True),
        ("lark", 'start: j\nj: %json {"type": "integer", "minimum": -1000000000000000000}', True),
        ("lark", r"start: /\x{3d}[0-9]{0,17}/", True),
        ("lark", "start: A ~ 1..100000", False),
    ],
)
def test_what_is_compiled_at_once(kind: ConstraintKind, text: str, cheap: bool) -> None:
    assert is_cheap(Constraint(kind=kind, text=text)) == cheap


def test_the_table_can_be_shown() -> None:
    assert DEFAULT_LIMITS.as_dict()["repeat"] == DEFAULT_LIMITS.repeat
    for name in DEFAULT_LIMITS.as_dict():
        assert f"{name}:" in (Limits.__doc__ or "") or f"{name}," in (Limits.__doc__ or "")
