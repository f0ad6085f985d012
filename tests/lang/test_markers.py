"""Expressions inside strings: they come back as they were, cost nothing, and cannot be forged."""

from __future__ import annotations

import gc
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import branchline as bl
from branchline.lang import markers
from branchline.lang.errors import ProgramError
from branchline.lang.expressions import Concat, Gen, Text, as_expression
from branchline.lang.markers import Box, BoxTable

PLAIN = st.text(max_size=30)


def flatten(value: object) -> list[object]:
    node = as_expression(value)
    return list(node.parts) if isinstance(node, Concat) else [node]


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.lists(st.one_of(PLAIN, PLAIN.map(lambda name: bl.gen("v" + name))), max_size=6))
def test_formatting_and_appending_is_the_identity(items: list[object]) -> None:
    text = "".join(str(item) for item in items)
    wanted: list[object] = []
    for item in items:
        if not isinstance(item, str):
            wanted.append(item)
        elif item and wanted and isinstance(wanted[-1], Text):
            wanted[-1] = Text(wanted[-1].text + item)
        elif item:
            wanted.append(Text(item))
    assert flatten(text) == (wanted or [Text("")])


@pytest.mark.parametrize(
    "expression",
    [
        bl.gen("x", stop=["\n", "."], logit_bias={3: 1.5}, temperature=0.5),
        bl.gen("x", Literal["a", "b"]),
        bl.gen("x", int),
        bl.gen("x", bl.regex("[a-z]+")),
        bl.select("x", ["a", "b"], method="total"),
        bl.user("hi " + bl.gen("x")),
        bl.user_begin(),
        bl.gen("a") + "text" + bl.gen("b"),
    ],
    ids=repr,
)
def test_every_expression_survives_formatting(expression: bl.Expression) -> None:
    assert as_expression(f"{expression}") == expression


def test_text_of_others_never_becomes_an_expression() -> None:
    marker = str(bl.gen("x"))
    forged = marker.replace(marker[1:10], "123456789")
    assert as_expression(forged) == Text(forged)


@pytest.mark.parametrize("change", [str.upper, lambda m: m[:-3], lambda m: m[3:], str.swapcase])
def test_a_changed_marker_is_an_error(change: object) -> None:
    marker = f"a {bl.gen('some_name')} b"
    with pytest.raises(ProgramError, match="cut or changed"):
        as_expression(change(marker))  # type: ignore[operator]


def test_a_format_specification_is_refused() -> None:
    with pytest.raises(ProgramError, match="format specification"):
        f"{bl.gen('x'):>10}"


@pytest.mark.parametrize(
    "use",
    [
        lambda m: bl.select("x", [m]),
        lambda m: bl.gen(m),
        lambda m: bl.regex(m),
        lambda m: bl.choices([m]),
    ],
)
def test_a_marker_where_text_is_wanted_is_an_error(use: object) -> None:
    with pytest.raises(ProgramError, match="plain text"):
        use(f"{bl.gen('y')}")  # type: ignore[operator]


def test_markers_reject_stop_strings_and_values() -> None:
    @bl.function
    def stops(s: bl.State) -> None:
        s += bl.gen("x", stop=f"{bl.gen('y')}")

    @bl.function
    def sets(s: bl.State) -> None:
        s.set("x", f"{bl.gen('y')}")

    for program in (stops, sets):
        with pytest.raises(ProgramError, match="plain text"):
            program.run(backend=bl.Mock("a"))


def test_formatting_keeps_nothing_alive() -> None:
    boxes = len(markers.boxes())
    gc.collect()
    before = len(gc.get_objects())
    for number in range(500):
        str(bl.gen(f"name_{number}", max_tokens=number + 1))
        str(bl.gen(f"typed_{number}", int))
    gc.collect()
    assert len(gc.get_objects()) - before < 50
    assert len(markers.boxes()) <= boxes + 1


def test_the_table_of_boxes_is_bounded_and_says_what_it_forgot() -> None:
    table = BoxTable(limit=2)
    keys = [table.put(Box({"n": number})) for number in range(3)]
    assert len(table) == 2
    assert table.get(keys[2]).value == {"n": 2}
    with pytest.raises(ProgramError, match="no longer known"):
        table.get(keys[0])


def test_equal_boxed_objects_share_an_entry_and_types_do_not_mix() -> None:
    table = BoxTable()
    assert table.put(Box(1)) == table.put(Box(1))
    assert table.put(Box(1)) != table.put(Box(True))


def test_a_program_call_formats_too() -> None:
    @bl.function
    def inner(s: bl.State, word: str) -> None:
        s += f"<{word}>"

    @bl.function
    def outer(s: bl.State) -> None:
        s += f"a{inner(word='b')}c{bl.gen('x')}"

    assert outer.run(backend=bl.Mock("!")).text() == "a<b>c!"


def test_gen_is_printable_without_a_marker() -> None:
    assert not markers.present(repr(bl.gen("x", int)))
    assert isinstance(bl.gen("x"), Gen)
