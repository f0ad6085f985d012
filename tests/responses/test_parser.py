"""The parser: however a text is cut the events are the same, and calls come back as written."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from branchline.runtime.errors import InvalidRequest
from branchline.runtime.responses import (
    FORMATS,
    ArgumentsPiece,
    CallBegin,
    CallBroken,
    CallEnd,
    TextPiece,
    ToolFormat,
    ToolSpec,
    tool_parser,
)
from tests.responses.writing import (
    ALL,
    CALLS,
    PROSE,
    TOOLS,
    Made,
    block_text,
    call_text,
    cuts,
    holds_several,
    parse,
    read,
)

ONE = Made("weather", {"a": 'Köln "x" }]</tool_call>', "b": {"c": [1, {"d": "\\"}]}})
TWO = Made("weather_at", {"a": "😀\n", "b": None})


@pytest.mark.parametrize("name", ALL)
def test_calls_come_back_and_no_cut_changes_anything(name: str) -> None:
    form = FORMATS[name]

    @settings(deadline=None, derandomize=True, max_examples=120)
    @given(
        PROSE,
        st.lists(CALLS, min_size=1, max_size=3 if holds_several(form) else 1),
        st.lists(st.integers(0, 500), max_size=5),
    )
    def check(before: str, calls: list[Made], places: list[int]) -> None:
        before = before if form.marker else ""
        text = before + block_text(form, calls)
        whole = parse(form, [text])
        assert read(whole) == (before, calls, [])
        assert parse(form, cuts(text, places)) == whole
        assert parse(form, list(text)) == whole

    check()


@pytest.mark.parametrize("name", ALL)
def test_garbled_texts_are_read_alike_however_they_are_cut(name: str) -> None:
    form = FORMATS[name]
    text = block_text(form, [ONE, TWO] if holds_several(form) else [ONE])
    parts = [part for part in (*form.texts(), *text.split('"'), " ", '"', "x", "weather") if part]

    @settings(deadline=None, derandomize=True, max_examples=250)
    @given(st.lists(st.sampled_from(parts), max_size=14).map("".join))
    def check(text: str) -> None:
        whole = parse(form, [text])
        assert parse(form, list(text)) == whole
        assert parse(form, [text[i : i + 3] for i in range(0, len(text), 3)]) == whole
        found = read(whole)
        if not found.calls and not form.frames:
            assert "".join(e.text for e in whole if isinstance(e, (TextPiece, CallBroken))) == text

    check()


@pytest.mark.parametrize("name", ALL)
def test_every_beginning_is_text_a_cut_call_or_whole(name: str) -> None:
    form = FORMATS[name]
    text = block_text(form, [ONE])
    for size in range(len(text)):
        events = parse(form, [text[:size]])
        found = read(events)
        broken = [event for event in events if isinstance(event, CallBroken)]
        assert all(event.cut for event in broken)
        if not found.calls:
            assert found.text + "".join(found.broken) == text[:size]


@pytest.mark.parametrize("name", ALL)
def test_several_calls_in_one_increment_keep_their_arguments(name: str) -> None:
    form = FORMATS[name]
    if not holds_several(form):
        assert name == "harmony"  # one message, one call
        return
    parser = tool_parser(form, TOOLS, prefix="t")
    events = parser.feed(block_text(form, [ONE, TWO, ONE]))
    assert read(events).calls == [ONE, TWO, ONE]
    ids = [event.id for event in events if isinstance(event, CallBegin)]
    assert ids == ["call_t0", "call_t1", "call_t2"]
    for index, call in enumerate([ONE, TWO, ONE]):
        pieces = [e.text for e in events if isinstance(e, ArgumentsPiece) and e.index == index]
        assert json.loads("".join(pieces)) == call.arguments


@pytest.mark.parametrize("name", [name for name in ALL if FORMATS[name].again])
def test_text_may_stand_before_between_and_after(name: str) -> None:
    form = FORMATS[name]
    block = block_text(form, [ONE])
    found = read(parse(form, list(f"First. {block}\nthen <{block}\n\n{block}\n done\n")))
    assert found == ("First. \nthen <\n done\n", [ONE, ONE, ONE], [])


def test_white_space_around_calls_is_no_text() -> None:
    form = FORMATS["hermes"]
    text = f"{block_text(form, [ONE])}\n \n{block_text(form, [TWO])}\n"
    assert read(parse(form, list(text))) == ("", [ONE, TWO], [])


def test_arguments_are_handed_on_while_they_come() -> None:
    form = FORMATS["hermes"]
    parser = tool_parser(form, TOOLS)
    events = parser.feed('<tool_call>\n{"name": "weather", "arguments": {"a": "Kö')
    assert isinstance(events[0], CallBegin)
    assert events[1:] == [ArgumentsPiece(0, '{"a": "Kö')]
    assert parser.feed('ln"}') == [ArgumentsPiece(0, 'ln"}')]
    assert parser.feed("}\n</tool_call>") == [CallEnd(0, {"a": "Köln"})]


def test_text_waits_only_while_it_may_be_a_marker() -> None:
    parser = tool_parser(FORMATS["hermes"], TOOLS)
    assert parser.feed("a <") == [TextPiece("a ")]
    assert parser.feed("b> <tool") == [TextPiece("<b> ")]
    assert parser.finish() == [TextPiece("<tool")]


@pytest.mark.parametrize("name", ALL)
def test_calls_of_unknown_tools_are_text(name: str) -> None:
    form = FORMATS[name]
    text = block_text(form, [Made("nothing", {"a": 1})])
    found = read(parse(form, list(text)))
    assert not found.calls
    assert not found.broken
    assert found.text == text


@pytest.mark.parametrize("name", ALL)
def test_arguments_that_are_not_valid_make_no_call(name: str) -> None:
    form = FORMATS[name]
    tool = ToolSpec(
        name="f",
        parameters={
            "type": "object",
            "properties": {"n": {"type": "integer", "maximum": 5}},
            "required": ["n"],
            "additionalProperties": False,
        },
    )
    good = parse(form, list(block_text(form, [Made("f", {"n": 5})])), [tool])
    assert read(good).calls == [Made("f", {"n": 5})]
    for wrong in ({"n": 6}, {"n": "5"}, {}, {"n": 1, "m": 1}):
        events = parse(form, list(block_text(form, [Made("f", wrong)])), [tool])
        broken = next(event for event in events if isinstance(event, CallBroken))
        assert not broken.cut
        assert "$" in broken.reason  # where the schema is broken
        assert call_text(form, Made("f", wrong)) in form.marker + form.opening + broken.text


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("a='x', b=\"it's\"", {"a": "x", "b": "it's"}),
        (r'a="\ud83d\ude00", b="\d\/\n"', {"a": "😀", "b": "\\d/\n"}),
        (
            "a=[True, false, None, null, -1.5], b=(1,)",
            {"a": [True, False, None, None, -1.5], "b": [1]},
        ),
        ("a={'k': {'l': ')'}}", {"a": {"k": {"l": ")"}}}),
        ("\n a = 1,\n b = 2\n", {"a": 1, "b": 2}),
        ("", {}),
    ],
)
def test_python_arguments_are_read_as_values(text: str, arguments: dict[str, Any]) -> None:
    events = parse(FORMATS["pythonic"], list(f"[weather({text})]"))
    assert read(events) == ("", [Made("weather", arguments)], [])


@pytest.mark.parametrize(
    "text",
    ["1", "a=open('x')", "a=b", "**{'a': 1}", "a=1, a=2", "a=b'x'", "a=1j", "a={1: 2}", "a=f'{1}'",
     "a='\\ud83d'", "a=1e999", "a=[1 2]"],
)  # fmt: skip
def test_python_that_is_no_value_makes_no_call(text: str) -> None:
    found = read(parse(FORMATS["pythonic"], list(f"[weather({text})]")))
    assert not found.calls
    assert len(found.broken) == 1


@pytest.mark.parametrize(
    "text", ["{]", '{"a": NaN}', '{"a": "\\ud83d"}', "[1]", "{'a': 1}", "{" * 5000 + "}" * 5000]
)
def test_json_that_is_no_object_makes_no_call(text: str) -> None:
    form: ToolFormat = FORMATS["mistral_args"]
    found = read(parse(form, [f"[TOOL_CALLS]weather[ARGS]{text}"]))
    assert not found.calls
    assert len(found.broken) == 1


def test_voices_of_harmony_are_told_apart() -> None:
    form = FORMATS["harmony"]
    text = (
        "<|channel|>analysis<|message|>Look it up.<|end|><|start|>assistant"
        "<|channel|>commentary<|message|>One moment.<|end|><|start|>assistant"
        '<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{"a": 1}'
    )
    events = parse(form, list(text))
    assert events[:2] == [TextPiece("Look it up.", "reasoning"), TextPiece("One moment.")]
    assert events[-1] == CallEnd(0, {"a": 1})


def test_a_schema_is_never_fetched() -> None:
    tool = ToolSpec(name="f", parameters={"properties": {"a": {"$ref": "http://127.0.0.1:9/x"}}})
    events = parse(
        FORMATS["hermes"], [block_text(FORMATS["hermes"], [Made("f", {"a": 1})])], [tool]
    )
    assert "cannot be followed" in next(e.reason for e in events if isinstance(e, CallBroken))


def test_a_schema_that_is_none_is_refused_by_name() -> None:
    tool = ToolSpec(name="f", parameters={"properties": {"a": {"type": "nonsense"}}})
    with pytest.raises(InvalidRequest, match="tool f are no JSON Schema"):
        parse(FORMATS["hermes"], [block_text(FORMATS["hermes"], [Made("f", {"a": 1})])], [tool])
