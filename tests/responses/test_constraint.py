"""The constraint and the parser are of one mind: what the one allows, the other reads as calls."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

import jsonschema
import numpy as np
import pytest
from msgspec.structs import replace

from branchline.runtime.core.protocols import TokenMatcher
from branchline.runtime.errors import InvalidRequest, UnsupportedConstraint
from branchline.runtime.grammar.backends import GrammarBackends
from branchline.runtime.grammar.base import ids_of
from branchline.runtime.responses import (
    FORMATS,
    CallBroken,
    ToolFormat,
    ToolSpec,
    tool_constraint,
)
from branchline.runtime.tokenizer.byte_tokenizer import ByteTokenizer
from tests.responses.writing import ALL, Made, block_text, holds_several, parse, read

WEATHER = ToolSpec(
    name="weather",
    description="Weather of a city.",
    parameters={
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 8},
            "days": {"type": "integer", "minimum": 1, "maximum": 14},
            "night": {"type": "boolean"},
        },
        "required": ["city"],
        "additionalProperties": False,
    },
)
WEATHER_AT = ToolSpec(
    name="weather_at",
    parameters={
        "type": "object",
        "properties": {
            "at": {"$ref": "#/$defs/point"},
            "unit": {"enum": ["C", "F", None]},
        },
        "required": ["at", "unit"],
        "additionalProperties": False,
        "$defs": {
            "point": {
                "type": "array",
                "prefixItems": [{"type": "integer"}, {"type": "boolean"}],
                "minItems": 2,
                "items": False,
            }
        },
    },
)
NOW = ToolSpec(name="now")
TOOLS = (WEATHER, WEATHER_AT, NOW)
ONE = Made("weather", {"city": 'K"}]', "night": True})
TWO = Made("weather_at", {"at": [1, True], "unit": "C"})


@pytest.fixture(scope="module")
def engine() -> Iterator[GrammarBackends]:
    backends = GrammarBackends(ByteTokenizer(), threads=1)
    yield backends
    backends.close()


def matcher(
    engine: GrammarBackends, form: ToolFormat, choice: str = "auto", *, parallel: bool = True
) -> TokenMatcher:
    return engine.compile(tool_constraint(form, TOOLS, choice, parallel)).matcher()


def allows(place: TokenMatcher, text: str) -> bool:
    return all(place.accept(byte) for byte in text.encode()) and place.is_accepting()


def text_of(form: ToolFormat, *calls: Made) -> str:
    """The block as the constraint writes it, without a marker where it may be left out."""
    text = block_text(form, calls)
    return text.removeprefix(form.marker) if form.bare else text


@pytest.mark.parametrize("name", ALL)
def test_choices_say_what_may_come(engine: GrammarBackends, name: str) -> None:
    form = FORMATS[name]
    call, prose = text_of(form, ONE), "It is warm <b>[1]</b> {x}."
    expected = {
        ("auto", prose): True,
        ("auto", ""): True,
        ("auto", call): True,
        ("none", prose): True,
        ("none", call): False,
        ("required", call): True,
        ("required", prose): False,
        ("required", ""): False,
        ("weather", call): True,
        ("weather_at", call): False,
        ("weather", prose): False,
    }
    found = {
        (choice, text): allows(matcher(engine, form, choice), text) for choice, text in expected
    }
    assert found == expected


@pytest.mark.parametrize("name", ALL)
def test_parallel_says_whether_several_calls_may_come(engine: GrammarBackends, name: str) -> None:
    form = FORMATS[name]
    several = text_of(form, ONE, TWO, ONE)
    may = holds_several(form)
    for choice in ("auto", "required"):
        assert allows(matcher(engine, form, choice), several) is may
        assert not allows(matcher(engine, form, choice, parallel=False), several)
    assert not allows(matcher(engine, form, "weather"), text_of(form, ONE, ONE))


@pytest.mark.parametrize("name", ALL)
def test_arguments_out_of_the_schema_are_not_allowed(engine: GrammarBackends, name: str) -> None:
    form = FORMATS[name]
    for wrong in ({}, {"city": "x", "days": 15}, {"city": "x", "more": 1}, {"days": 1}):
        assert not allows(matcher(engine, form), text_of(form, Made("weather", wrong)))


@pytest.mark.parametrize("choice", ["auto", "required", "none", "weather_at"])
@pytest.mark.parametrize("name", ALL)
def test_whatever_is_allowed_is_read_as_valid_calls(
    engine: GrammarBackends, name: str, choice: str
) -> None:
    form = FORMATS[name]
    compiled = engine.compile(tool_constraint(form, TOOLS, choice, True))
    ended = 0
    for seed in range(12):
        text, whole = walk(compiled.matcher(), form, random.Random(seed))
        events = parse(form, list(text), TOOLS)
        broken = [event for event in events if isinstance(event, CallBroken)]
        assert all(event.cut for event in broken), text
        found = read(events)
        for call in found.calls:
            tool = next(tool for tool in TOOLS if tool.name == call.name)
            jsonschema.validate(call.arguments, tool.schema)
        if whole:
            ended += 1
            assert not broken
            assert bool(found.calls) or choice in ("auto", "none"), text
        if choice == "none":
            assert not found.calls
    assert ended


def walk(place: TokenMatcher, form: ToolFormat, chance: random.Random) -> tuple[str, bool]:
    """Random bytes that the constraint allows, markers and ends among them more often than not;
    whether the text has ended."""
    mask = np.zeros((1, (260 + 31) // 32), dtype=np.int32)
    written = bytearray()
    wanted: list[int] = []
    while len(written) < 500:
        if place.is_accepting() and (place.is_terminated() or chance.random() < 0.15):
            return written.decode(), True
        place.fill(mask, 0)
        allowed = [i for i in ids_of(mask[0], 260) if i < 256]
        if not wanted and chance.random() < 0.1:
            wanted = list(chance.choice([part for part in form.texts() if part]).encode())
        if wanted and wanted[0] in allowed:
            byte = wanted.pop(0)
        else:
            wanted = []
            closing = [i for i in allowed if i in b'"])}' and chance.random() < 0.5]
            ascii_only = [i for i in allowed if 32 <= i < 127]
            byte = chance.choice(closing or ascii_only or allowed)
        assert place.accept(byte)
        written.append(byte)
    return written.decode("utf-8", "ignore"), False


@pytest.mark.parametrize(
    ("name", "marks"),
    [
        ("mistral", {"[TOOL_CALLS]": 256}),
        ("llama3", {"<|python_tag|>": 256}),
        ("harmony", {"<|channel|>": 256, "<|message|>": 258}),
    ],
)
def test_markers_that_are_tokens_are_written_as_tokens(
    engine: GrammarBackends, name: str, marks: dict[str, int]
) -> None:
    form = replace(FORMATS[name], special=marks)
    text = f"well {block_text(form, [ONE])}"
    ids: list[int] = []
    while text:
        mark = next((mark for mark in marks if text.startswith(mark)), None)
        ids += [marks[mark]] if mark else list(text[0].encode())
        text = text[len(mark or "x") :]
    place = matcher(engine, form)
    assert all(place.accept(token) for token in ids)
    assert place.is_accepting()
    assert not allows(matcher(engine, form), f"well {block_text(form, [ONE])}")  # spelled out


@pytest.mark.parametrize("name", ALL)
def test_schemas_are_as_exact_as_on_their_own(engine: GrammarBackends, name: str) -> None:
    """In any order of the properties, with keywords that the engine itself does not enforce."""
    form = FORMATS[name]
    wanted = {"type": "integer", "not": {"enum": [3, 4]}}
    fields = {"a": wanted, "b": {"type": "array", "items": {"enum": [1, 2]}, "uniqueItems": True}}
    tool = ToolSpec(name="f", parameters={"properties": fields, "additionalProperties": False})
    compiled = engine.compile(tool_constraint(form, [tool], "required", True))
    expected = {
        '{"a": 2, "b": [2, 1]}': True,
        '{"a": 3}': False,
        '{"b": [1, 1]}': False,
        '{"a": 13}': True,
    }
    if form.arguments == "json":
        expected['{"b": [2], "a": 2}'] = True
    for text, fits in expected.items():
        block = text_of(form, Made("f", json.loads(text)))
        assert allows(compiled.matcher(), block) is fits, block


def test_what_keyword_arguments_cannot_say_is_refused_by_name() -> None:
    form = FORMATS["pythonic"]
    for parameters, what in (
        ({"properties": {"a-b": {}}}, "a-b"),
        ({"properties": {"class": {}}}, "class"),
        ({"required": ["a"]}, "'a'"),
        ({"properties": {"a": {}}, "anyOf": [{"required": ["a"]}]}, "anyOf"),
    ):
        with pytest.raises(UnsupportedConstraint, match=what):
            tool_constraint(form, [ToolSpec(name="f", parameters=parameters)], "auto", True)


@pytest.mark.parametrize(
    ("tools", "choice", "what"),
    [
        ([], "auto", "no tools"),
        ([NOW, NOW], "auto", "two tools have one name"),
        ([NOW], "later", "Known: auto, none, required, now"),
    ],
)
def test_tools_and_choices_that_do_not_fit_are_refused(
    tools: list[ToolSpec], choice: str, what: str
) -> None:
    with pytest.raises(InvalidRequest, match=what):
        tool_constraint(FORMATS["hermes"], tools, choice, True)
