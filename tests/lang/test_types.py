"""Types: what is enforced, and that every text allowed reads back as an instance."""

from __future__ import annotations

import datetime
import enum
import re
import uuid
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import branchline as bl
from branchline.lang import plain, types
from branchline.lang.errors import ConstraintError, InvalidRequest
from branchline.runtime.grammar.limits import is_cheap
from tests.lang.typed_values import Movie, Node, Person, Point


class Colour(enum.Enum):
    RED = "red"
    DARK = 2


@pytest.mark.parametrize(
    ("wanted", "pattern", "convert"),
    [
        (int, plain.INT_PATTERN, int),
        (float, plain.FLOAT_PATTERN, float),
        (bool, plain.BOOL_PATTERN, lambda text: text.lower() == "true"),
    ],
)
def test_whatever_a_pattern_allows_reads_back(wanted: type, pattern: str, convert: Any) -> None:
    @settings(deadline=None, derandomize=True, max_examples=80)
    @given(st.from_regex(pattern, fullmatch=True, alphabet="-0123456789.eE+TtruFfals"))
    def check(text: str) -> None:
        value = types.resolve(wanted).value(text, truncated=False)
        assert type(value) is wanted
        assert value == convert(text)

    check()


@pytest.mark.parametrize(
    "wanted",
    [
        *(int, float, bool, datetime.date, datetime.time, datetime.datetime, uuid.UUID),
        *(list[int], dict[str, float], int | None, Person, Node, Movie, Point),
    ],
    ids=str,
)
def test_a_type_is_compiled_at_once_and_waits_for_no_worker(wanted: object) -> None:
    constraint = types.resolve(wanted).constraint
    assert constraint is not None and is_cheap(constraint)


def test_so_is_an_integer_within_a_composition() -> None:
    constraint = types.resolve(bl.seq("n=", bl.capture("n", int))).constraint
    assert constraint is not None and is_cheap(constraint)


@pytest.mark.parametrize("text", ["0", "-1", "123456789012345678"])
def test_integers_fit_64_bits(text: str) -> None:
    assert re.fullmatch(plain.INT_PATTERN, text)
    assert not re.fullmatch(plain.INT_PATTERN, "1" * 19)


@pytest.mark.parametrize(
    ("wanted", "reply", "value"),
    [
        (None, "any 'text', ok? a-b 3.5", "any 'text', ok? a-b 3.5"),
        (str, "it's 3.5, ok?", "it's 3.5, ok?"),
        (int, "-42", -42),
        (float, "2.5e3", 2500.0),
        (bool, "False", False),
        (Literal["a", 7], "7", 7),
        (Colour, "2", Colour.DARK),
        (Colour, "red", Colour.RED),
        (bl.regex("[ab]{3}"), "aba", "aba"),
        (bl.choices(["x", "yy"]), "yy", "yy"),
    ],
)
def test_a_variable_is_an_instance_of_its_type(wanted: Any, reply: str, value: Any) -> None:
    @bl.function
    def program(s: bl.State) -> Any:
        s += bl.gen("x", wanted)
        return s["x"]

    result = program.run(backend=bl.Mock(reply)).result
    assert result == value
    assert type(result) is type(value)


@pytest.mark.parametrize("wanted", [object(), set, frozenset[int], complex])
def test_a_type_that_cannot_be_enforced_is_refused_by_name(wanted: Any) -> None:
    with pytest.raises(bl.UnsupportedConstraint) as caught:
        bl.gen("x", wanted)
    assert (wanted.__name__ if isinstance(wanted, type) else str(wanted)) in str(caught.value)


def test_values_that_read_the_same_are_refused() -> None:
    with pytest.raises(bl.UnsupportedConstraint, match="'1'"):
        bl.gen("x", Literal[1, "1"])


@pytest.mark.parametrize(
    "make",
    [
        lambda: bl.gen("x", int, regex="a"),
        lambda: bl.gen("x", int, choices=["a"]),
        lambda: bl.gen("x", regex="a", choices=["a"]),
        lambda: bl.gen("x", int, json_schema={}),
        lambda: bl.gen("x", regex="a", grammar='start: "a"'),
        lambda: bl.gen("x", json_schema="{"),
        lambda: bl.gen("x", json_schema="3"),
        lambda: bl.gen("x", choices=[]),
        lambda: bl.gen("x", choices=["a", ""]),
        lambda: bl.gen("x", choices=["a", "a"]),
        lambda: bl.gen("x", choices="ab"),
        lambda: bl.gen("x", choices=["a", 1]),  # type: ignore[list-item]
        lambda: bl.gen("x", choices_method="total"),
        lambda: bl.select("x", ["a"], method="best"),  # type: ignore[arg-type]
        lambda: bl.select("x", ["a"], temperature=-1.0),
        lambda: bl.select("x"),
        lambda: bl.regex(""),
        lambda: bl.choices([]),
    ],
)
def test_wrong_constraints_are_invalid_requests(make: Any) -> None:
    with pytest.raises(InvalidRequest):
        make()


def test_a_typed_value_cut_by_max_tokens_is_truncated_and_its_text_readable() -> None:
    @bl.function
    def program(s: bl.State) -> None:
        s += bl.gen("x", Literal["abcdef"], max_tokens=3)
        s += bl.gen("y", bl.regex("[a-z]+!"), max_tokens=3)
        s += bl.gen("z", max_tokens=3)

    state = program.run(backend=bl.Mock({"x": "abcdef", "y": "abcd!", "z": "abcdef"}))
    for name in ("x", "y"):
        with pytest.raises(bl.TruncatedError, match="max_tokens") as caught:
            state[name]
        assert caught.value.variable == name
        assert state.meta(name).text == "abc"
        assert state.meta(name).finish_reason == "length"
    assert state["z"] == "abc"


@pytest.mark.parametrize(
    ("wanted", "text"),
    [
        (int, "12"),
        (float, "1.5"),
        (Literal["a", "ab"], "a"),
        ({"type": "integer"}, "12"),
        (bl.seq("n=", bl.capture("n", int)), "n=12"),
        (bl.lark('start: "a"+'), "aa"),
    ],
)
def test_a_value_that_was_cut_is_never_taken_for_whole(wanted: Any, text: str) -> None:
    """More might have followed: 12 is a wrong answer where the model meant 1200."""
    kind = types.resolve(wanted)
    with pytest.raises(bl.TruncatedError, match="max_tokens"):
        kind.value(text, truncated=True)
    with pytest.raises(bl.TruncatedError, match="max_tokens"):
        kind.captured(text, truncated=True)
    assert kind.value(text, truncated=False) is not None


def test_a_text_that_was_cut_where_its_pattern_matches_is_that_text() -> None:
    assert types.resolve(bl.regex("[ab]+")).value("ab", truncated=True) == "ab"
    with pytest.raises(bl.TruncatedError):
        types.resolve(bl.regex("[ab]+c")).value("ab", truncated=True)


def test_an_output_its_type_cannot_read_is_a_constraint_error() -> None:
    with pytest.raises(ConstraintError, match="not a int"):
        types.resolve(int).value("four", truncated=False)


def test_n_outputs_are_a_list_of_instances() -> None:
    @bl.function
    def program(s: bl.State) -> Any:
        s += "N: " + bl.gen("x", int, n=3)
        return s["x"]

    state = program.run(backend=bl.Mock(["1", "2", "3"]))
    assert state.result == [1, 2, 3]
    assert state.text() == "N: 1"
    assert state.meta("x").texts == ("1", "2", "3")
