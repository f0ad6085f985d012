"""Partial objects: every finished field and item is an event, however the text is cut."""

from __future__ import annotations

import datetime
import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import branchline as bl
from branchline.lang.partials import Watch
from branchline.lang.schemas import document
from tests.lang.typed_values import Address, Colour, Node, Order, Person

TEXT = json.dumps(
    {
        "name": 'a "q" \\ {[',
        "age": 3,
        "born": "2020-02-29",
        "address": {"street": "s", "zip": "12345"},
        "tags": ["x", "y, z"],
        "colour": 2,
    }
)
PARTS = [
    (".name", 'a "q" \\ {['),
    (".age", 3),
    (".born", datetime.date(2020, 2, 29)),
    (".address.street", "s"),
    (".address.zip", "12345"),
    (".address", Address("s", "12345")),
    (".tags[0]", "x"),
    (".tags[1]", "y, z"),
    (".tags", ["x", "y, z"]),
    (".colour", Colour.DARK),
]


def parts_of(wanted: Any, pieces: list[str]) -> list[tuple[str, Any]]:
    watch = Watch(document(wanted).root)
    return [tuple(part) for piece in pieces for part in watch.feed(piece)]  # type: ignore[misc]


@pytest.mark.parametrize("cut", range(len(TEXT) + 1))
def test_every_split_in_two_gives_the_same_parts(cut: int) -> None:
    assert parts_of(Person, [TEXT[:cut], TEXT[cut:]]) == PARTS


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.lists(st.integers(0, len(TEXT)), max_size=12))
def test_every_split_gives_the_same_parts(cuts: list[int]) -> None:
    marks = [0, *sorted(cuts), len(TEXT)]
    pieces = [TEXT[a:b] for a, b in pairwise(marks)]
    assert parts_of(Person, pieces) == PARTS
    assert parts_of(Person, list(TEXT)) == PARTS


@pytest.mark.parametrize(
    ("wanted", "text", "found"),
    [
        (list[int], "[1, 23]", [("[0]", 1), ("[1]", 23)]),
        (list[list[bool]], "[[true], []]", [("[0][0]", True), ("[0]", [True]), ("[1]", [])]),
        (dict[str, int], '{"a b": 1, "c": 2}', [('["a b"]', 1), (".c", 2)]),
        (dict[str, int], '{"a": 1, "c"', [(".a", 1)]),
        (int, "12", []),
        (str, '"a"', []),
        (Person | None, '{"name": "x"', [(".name", "x")]),
        (
            Node,
            '{"value": 1, "children": [{"value": 2}]}',
            [
                (".value", 1),
                (".children[0].value", 2),
                (".children[0]", Node(2)),
                (".children", [Node(2)]),
            ],
        ),
        (Order, '{"items": ["tea"]', [(".items[0]", "tea"), (".items", ["tea"])]),
    ],
)
def test_parts_are_typed(wanted: Any, text: str, found: list[tuple[str, Any]]) -> None:
    assert parts_of(wanted, list(text)) == found


def test_a_stream_has_an_event_for_each_part_and_capture() -> None:
    @bl.function
    def program(s: bl.State) -> None:
        s += bl.gen("person", Person, max_tokens=256)
        s += bl.gen("line", bl.seq("n", bl.capture("n", int)))

    mock = bl.Mock({"person": TEXT, "line": "n12"})
    events = [e for e in program.stream(backend=mock) if isinstance(e, bl.VariableReady)]
    person = program.run(backend=mock)["person"]
    expected = [("person" + path, value) for path, value in PARTS]
    expected += [("person", person), ("n", 12), ("line", "n12")]
    assert [(event.name, event.value) for event in events] == expected


def test_a_cut_stream_reports_what_was_finished_and_then_the_error() -> None:
    @bl.function
    def program(s: bl.State) -> None:
        s += bl.gen("person", Person, max_tokens=len(TEXT) // 3)

    events = [
        event
        for event in program.stream(backend=bl.Mock(TEXT))
        if isinstance(event, bl.VariableReady)
    ]
    assert [event.name for event in events] == ["person.name", "person.age", "person"]
    assert isinstance(events[-1].error, bl.TruncatedError)
