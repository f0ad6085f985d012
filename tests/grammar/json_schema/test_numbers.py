"""Sets of numbers: the spelling has a number exactly when the set has it."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import llguidance
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from branchline.runtime.grammar.json_schema.numbers import Numbers, meet, spelling, without
from tests.grammar.json_schema.harness import Checker, tokenizer

decimals = st.builds(lambda n, d: Fraction(n, 10**d), st.integers(-1200, 1200), st.integers(0, 2))
bounds = st.one_of(st.none(), decimals)
steps = st.sampled_from(
    [None, None, 1, 2, 3, 5, Fraction(1, 2), Fraction(1, 100), 10, Fraction(5, 2)]
)


@st.composite
def sets(draw: st.DrawFn) -> Numbers | None:
    step = draw(steps)
    low, high = draw(bounds), draw(bounds)
    return meet(
        Numbers(low, draw(st.booleans()) and low is not None),
        Numbers(
            None, False, high, draw(st.booleans()) and high is not None, step and Fraction(step)
        ),
    )


def written(value: Fraction) -> str:
    return str(int(value)) if value.denominator == 1 else repr(float(value))


def accepts(found: tuple[str, bool], texts: list[str]) -> list[bool]:
    expression, is_rule = found
    name = "n" if is_rule else "N"
    grammar = llguidance.LLMatcher.grammar_from_lark(f"start: {name}\n{name}: {expression}\n")
    start = llguidance.LLMatcher(tokenizer(), grammar, log_level=0)
    assert not start.is_error(), start.get_error()
    results = []
    for text in texts:
        matcher = start.deep_copy()
        taken = matcher.try_consume_tokens(list(text.encode()))
        results.append(taken == len(text) and matcher.is_accepting())
    return results


@settings(deadline=None, derandomize=True, max_examples=150)
@given(sets(), st.lists(decimals, min_size=8, max_size=8))
def test_spelled_exactly(numbers: Numbers | None, some: list[Fraction]) -> None:
    if numbers is None:
        return
    around = [bound for bound in (numbers.low, numbers.high) if bound is not None]
    some = [*some, *around, *(b + d for b in around for d in (-1, 1, Fraction(1, 100)))]
    found = spelling(numbers)
    assert found is not None
    assert accepts(found, list(map(written, some))) == [numbers.has(value) for value in some]


@settings(deadline=None, derandomize=True, max_examples=150)
@given(sets(), sets(), decimals)
def test_meet_and_without_are_those_of_sets(
    left: Numbers | None, right: Numbers | None, value: Fraction
) -> None:
    if left is None or right is None:
        return
    both = meet(left, right)
    assert (both is not None and both.has(value)) == (left.has(value) and right.has(value))
    rest = without(left)
    if rest is not None:
        assert any(one.has(value) for one in rest) != left.has(value)


def test_listed_numbers() -> None:
    listed = Numbers(listed=frozenset({Fraction(1), Fraction(-5, 2), Fraction(10) ** 20}))
    found = spelling(listed)
    assert found is not None
    texts = ["1", "1.0", "-2.5", "-2.50", "1e+20", "2", "-2", "15"]
    assert accepts(found, texts) == [True] * 5 + [False] * 3


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer"},
        {"const": 7},
        {"const": 7.0},
        {"enum": [7, 10**20]},
        {"type": "integer", "enum": [7, 0.5]},
        {"type": "number", "minimum": 7, "maximum": 7},
        {"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 70},
    ],
)
def test_where_all_numbers_are_whole_none_has_a_fraction(schema: dict[str, Any]) -> None:
    checker = Checker(schema)
    assert checker.takes_text("7")
    assert not any(map(checker.takes_text, ["7.0", "7e0", "1e+20"]))


@pytest.mark.parametrize("schema", [{"type": "number"}, {"enum": [0.5, 7]}, {"multipleOf": 0.5}])
def test_beside_other_numbers_a_whole_one_may_have_a_fraction_of_zeros(
    schema: dict[str, Any],
) -> None:
    assert all(map(Checker(schema).takes_text, ["7", "7.0"]))


def test_an_exponent_spells_the_listed_number_and_not_one_near_it() -> None:
    checker = Checker({"enum": [0.5, 123456789012345678901]})
    assert checker.takes_text("123456789012345678901")
    assert not checker.takes_text("1.2345678901234568e+20")


@pytest.mark.parametrize("value", ["1e-07", "1.5e-10", "1e+16", "12e5"])
def test_exponents_only_where_no_bound_is_near(value: str) -> None:
    at_least_zero = spelling(Numbers(low=Fraction(0)))
    up_to_one = spelling(Numbers(low=Fraction(0), high=Fraction(1)))
    assert at_least_zero is not None and up_to_one is not None
    assert accepts(at_least_zero, [value]) == [value != "12e5"]
    assert accepts(up_to_one, [value]) == ["-" in value]
