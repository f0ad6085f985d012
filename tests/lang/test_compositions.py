"""Compositions: one constraint, values of the parts, captures as variables."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import branchline as bl
from branchline.lang import types
from branchline.lang.errors import InvalidRequest, NameInUse
from branchline.lang.grammar import as_grammar
from tests.lang.typed_values import Point


def read(node: object, text: str) -> tuple[Any, dict[str, Any]]:
    kind = types.resolve(node)
    return kind.value(text, truncated=False), kind.captured(text, truncated=False)


CARD = bl.seq(
    "Name: ",
    bl.capture("name", bl.until("\n")),
    bl.optional(bl.seq("Age: ", bl.capture("age", int), "\n")),
    bl.capture("at", Point),
    bl.repeat(bl.seq(" ", bl.capture("tags", bl.regex("[a-z]+") | int)), 0, 3),
)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('Name: Bo\nAge: 41\n{"x": 1} a 7', {"name": "Bo", "age": 41, "at": Point(1)}),
        ('Name: \n{"x": 1, "y": 2.5} a 7', {"name": "", "age": None, "at": Point(1, 2.5)}),
    ],
)
def test_captures_are_typed_variables(text: str, found: dict[str, Any]) -> None:
    @bl.function
    def program(s: bl.State) -> Any:
        s += bl.gen("card", CARD)
        return {name: s[name] for name in ("name", "age", "at", "tags")}

    state = program.run(backend=bl.Mock(text))
    assert state.result == {**found, "tags": ["a", 7]}
    assert state["card"] == text
    assert state.names == ["card", "name", "age", "at", "tags"]
    assert state.meta("age").text == text


@pytest.mark.parametrize(
    ("node", "text", "value"),
    [
        (bl.seq("a", int), "a12", "a12"),
        (bl.regex("a+") | int, "12", 12),
        (int | bl.regex("a+"), "aa", "aa"),
        (bl.optional(int), "", None),
        (bl.optional(int), "3", 3),
        (bl.repeat(bl.seq(int, ";"), 2, 3), "1;2;", ["1;", "2;"]),
        (bl.repeat(int | bl.regex("[a-c]")), "1a2", [1, "a", 2]),
        (bl.until("ab"), "xaab", "xa"),
        (bl.seq("<", str, ">"), "<a>b>", "<a>b>"),
        (bl.capture("x", list[int]), "[1]", [1]),
        (bl.seq(list[int], ", ", bool), "[1, 2], true", "[1, 2], true"),
    ],
)
def test_values_of_compositions(node: Any, text: str, value: Any) -> None:
    assert read(node, text)[0] == value
    with pytest.raises(bl.ConstraintError):
        read(node, text + "\n\n!")


def test_each_part_takes_as_much_as_it_can_from_the_left() -> None:
    node = bl.seq(bl.capture("a", bl.regex("x*")), bl.capture("b", bl.regex("x+y*")))
    assert read(node, "xxxy")[1] == {"a": "xx", "b": "xy"}


def test_a_capture_that_is_taken_or_repeated_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="one name"):
        bl.seq(bl.capture("x", int), bl.capture("x", int))

    @bl.function
    def program(s: bl.State) -> None:
        s += bl.gen("x", bl.seq(bl.capture("x", int)))

    with pytest.raises(NameInUse):
        program.run(backend=bl.Mock("1"))


def test_captures_of_appended_values_are_lists() -> None:
    @bl.function
    def program(s: bl.State) -> Any:
        for _ in range(2):
            s += bl.gen("line", bl.seq("n", bl.capture("n", int)), append=True)
        return s["n"], s["line"]

    assert program.run(backend=bl.Mock(["n1", "n2"])).result == ([1, 2], ["n1", "n2"])
    graph = program.trace()
    assert len([node for node in graph.nodes if node.kind == "generate"]) == 2


@pytest.mark.parametrize(
    "make",
    [
        lambda: bl.seq(),
        lambda: bl.seq(""),
        lambda: bl.repeat(int, 3, 2),
        lambda: bl.repeat(int, 0, 0),
        lambda: bl.repeat(int, -1),
        lambda: bl.until(""),
        lambda: bl.capture("", int),
        lambda: bl.lark(" "),
        lambda: bl.ebnf(3),  # type: ignore[arg-type]
    ],
)
def test_wrong_compositions_are_invalid_requests(make: Any) -> None:
    with pytest.raises(InvalidRequest):
        make()


@pytest.mark.parametrize(
    ("node", "says"),
    [
        (lambda: bl.seq(str, list[int]), "until"),
        (lambda: bl.seq("a", bl.ebnf('root ::= "a"')), "Ebnf"),
        (lambda: bl.seq("a", bl.structural_tag({"triggers": []})), "StructuralTag"),
        (lambda: bl.seq("a", object()), "cannot be generated"),
        (lambda: bl.seq("a", 3), "cannot be generated"),
    ],
)
def test_what_cannot_be_composed_is_refused_by_name(node: Any, says: str) -> None:
    with pytest.raises(bl.UnsupportedConstraint, match=says):
        bl.gen("x", node())


leaves = st.sampled_from(["a", "b", "ab", int, bl.regex("a*"), bl.regex("[ab]"), bl.until("b")])
nodes = st.recursive(
    leaves.map(as_grammar),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: bl.seq(*parts)),
        st.tuples(inner, inner).map(lambda pair: pair[0] | pair[1]),
        inner.map(bl.optional),
        st.tuples(inner, st.integers(0, 2), st.integers(1, 2)).map(
            lambda t: bl.repeat(t[0], t[1], t[1] + t[2])
        ),
    ),
    max_leaves=6,
)


def spelled(node: Any) -> str:
    """A composition as one Python pattern: the oracle."""
    name = type(node).__name__
    if name == "Literal":
        return f"(?:{node.text})"
    if name == "Typed":
        return f"(?:{types.resolve(node).constraint.text})"  # type: ignore[union-attr]
    if name == "Regex":
        return f"(?:{node.pattern})"
    if name == "Until":
        return "(?:[^b]*b)"
    if name == "Seq":
        return "".join(map(spelled, node.parts))
    if name == "Alt":
        return f"(?:{'|'.join(map(spelled, node.branches))})"
    if name == "Optional":
        return f"(?:{spelled(node.body)})?"
    return f"(?:{spelled(node.body)}){{{node.low},{node.high}}}"


@settings(deadline=None, derandomize=True, max_examples=150)
@given(nodes, st.lists(st.text("ab0-", max_size=5), max_size=6))
def test_a_text_is_read_where_the_same_pattern_matches(node: Any, texts: list[str]) -> None:
    for text in [*texts, "", "a", "ab", "b0"]:
        matches = re.fullmatch(spelled(node), text) is not None
        try:
            read(bl.seq(node), text)
            found = True
        except bl.ConstraintError:
            found = False
        assert found == matches, (node, text)
