"""Calls or a constrained answer: the grammar allows one or the other, the parser reads it so."""

from __future__ import annotations

import json

import pytest
from msgspec.structs import replace

from branchline.runtime.core.sampling_params import Constraint
from branchline.runtime.errors import UnsupportedConstraint
from branchline.runtime.grammar.backends import GrammarBackends
from branchline.runtime.responses import FORMATS, ToolFormat, tool_constraint, tool_parser
from tests.responses.test_constraint import NOW, ONE, TOOLS, allows, engine
from tests.responses.writing import Read, block_text, holds_several, read

__all__ = ["engine"]

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "answer": {"type": "string"},
        "arguments": {},
        "parameters": {},
    },
    "required": ["name"],
}
ANSWER = Constraint(kind="json_schema", text=json.dumps(SCHEMA))
ABLE = sorted(name for name, form in FORMATS.items() if not form.frames)
NESTED = {"city": "Rome"}


def answers(form: ToolFormat) -> list[str]:
    """Answers that spell what could be taken for calls."""
    values = [
        {"name": "x"},
        {"name": "weather", "arguments": NESTED},
        {"name": "weather", "parameters": NESTED},
        {"name": block_text(form, [ONE])},
        {"name": form.marker, "answer": f"a {form.marker}{form.opening}{form.head}weather"},
    ]
    return [json.dumps(value, ensure_ascii=False) for value in values]


def parsed(form: ToolFormat, pieces: list[str]) -> Read:
    parser = tool_parser(form, TOOLS, apart=True)
    return read([e for piece in pieces for e in parser.feed(piece)] + parser.finish())


@pytest.mark.parametrize("name", ABLE)
def test_what_is_allowed_is_read_as_calls_or_as_the_answer(
    engine: GrammarBackends, name: str
) -> None:
    form = FORMATS[name]
    compiled = engine.compile(tool_constraint(form, TOOLS, "auto", True, ANSWER))
    for calls in [[ONE], [ONE, ONE]] if holds_several(form) else [[ONE]]:
        text = block_text(form, calls)
        assert allows(compiled.matcher(), text), text
        for pieces in ([text], list(text)):
            assert parsed(form, pieces) == Read("", calls, [])
    for text in answers(form):
        assert allows(compiled.matcher(), text), text
        for pieces in ([text], list(text)):
            assert parsed(form, pieces) == Read(text, [], [])
    for text in ("", "Hi.", '{"answer": "x"}', "Hi. " + block_text(form, [ONE])):
        assert not allows(compiled.matcher(), text), text


def test_the_answer_has_its_own_policy_for_white_space(engine: GrammarBackends) -> None:
    compact = replace(ANSWER, whitespace="compact")
    compiled = engine.compile(tool_constraint(FORMATS["hermes"], [NOW], "auto", True, compact))
    assert allows(compiled.matcher(), '{"name":"x"}')
    assert not allows(compiled.matcher(), '{"name": "x"}')


def test_a_marker_that_is_a_token_stands_before_any_json(engine: GrammarBackends) -> None:
    form = replace(FORMATS["mistral"], special={"[TOOL_CALLS]": 258})
    answer = Constraint(kind="json_schema", text='{"type": "array", "items": {"type": "integer"}}')
    compiled = engine.compile(tool_constraint(form, TOOLS, "auto", True, answer))
    assert allows(compiled.matcher(), "[1, 2]")
    called = compiled.matcher()
    assert called.accept(258)
    assert allows(called, block_text(form, [ONE]).removeprefix(form.marker))


def test_where_only_calls_may_come_there_is_no_answer() -> None:
    form = FORMATS["hermes"]
    for choice in ("required", "weather"):
        alone = tool_constraint(form, TOOLS, choice, True)
        assert tool_constraint(form, TOOLS, choice, True, ANSWER) == alone


@pytest.mark.parametrize(
    ("form", "answer", "why"),
    [
        (FORMATS["hermes"], Constraint(kind="regex", text="a"), "must be JSON of a schema"),
        (FORMATS["harmony"], ANSWER, "harmony cannot have"),
        (replace(FORMATS["llama3"], marker=""), ANSWER, "begins as a call does"),
        (FORMATS["mistral"], Constraint(kind="json_schema", text="{}"), "begins as a call does"),
        (FORMATS["pythonic"], Constraint(kind="json_schema", text="{}"), "begins as a call does"),
    ],
)
def test_what_cannot_be_told_apart_is_refused(
    form: ToolFormat, answer: Constraint, why: str
) -> None:
    with pytest.raises(UnsupportedConstraint, match=why):
        tool_constraint(form, TOOLS, "auto", True, answer)
