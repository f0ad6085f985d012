"""Writes outputs as the formats describe them: the oracle of the parser's tests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from hypothesis import strategies as st

from branchline.runtime.responses import (
    FORMATS,
    ArgumentsPiece,
    CallBegin,
    CallEnd,
    TextPiece,
    ToolEvent,
    ToolFormat,
    ToolSpec,
    tool_parser,
)

ANY = {"type": "object", "properties": {"a": {}, "b": {}}}
WEATHER = ToolSpec(name="weather", description="Weather of a city.", parameters=ANY)
WEATHER_AT = ToolSpec(name="weather_at", parameters=ANY)
TOOLS = (WEATHER, WEATHER_AT)
ALL = sorted(FORMATS)


class Made(NamedTuple):
    """A call that an output holds."""

    name: str
    arguments: dict[str, Any]


class Read(NamedTuple):
    """What a parser has found in all."""

    text: str
    calls: list[Made]
    broken: list[str]


def arguments_text(form: ToolFormat, arguments: dict[str, Any]) -> str:
    if form.arguments == "json":
        return json.dumps(arguments, ensure_ascii=False)
    return ", ".join(f"{name}={_python(value)}" for name, value in arguments.items())


def _python(value: Any) -> str:
    """As a constraint has it: JSON, but for a boolean that is an argument itself."""
    return str(value) if isinstance(value, bool) else json.dumps(value)


def call_text(form: ToolFormat, call: Made) -> str:
    arguments = arguments_text(form, call.arguments)
    return f"{form.head}{call.name}{form.middle}{arguments}{form.tail}"


def block_text(form: ToolFormat, calls: Sequence[Made]) -> str:
    """All calls, in one block where the format allows that."""
    if form.separator is None:
        blocks = [
            f"{form.marker}{form.opening}{call_text(form, call)}{form.closing}" for call in calls
        ]
        return form.gap.join(blocks)
    inside = form.separator.join(call_text(form, call) for call in calls)
    return f"{form.marker}{form.opening}{inside}{form.closing}"


def holds_several(form: ToolFormat) -> bool:
    """Whether an output of the format may hold more than one call."""
    return form.again or form.separator is not None


def parse(form: ToolFormat, pieces: Sequence[str], tools: Any = TOOLS) -> list[ToolEvent]:
    parser = tool_parser(form, tools, prefix="t")
    events = [event for piece in pieces for event in parser.feed(piece)]
    return joined([*events, *parser.finish()])


def joined(events: Sequence[ToolEvent]) -> list[ToolEvent]:
    """Neighbouring pieces put together."""
    found: list[ToolEvent] = []
    for event in events:
        last = found[-1] if found else None
        same = isinstance(event, TextPiece) and isinstance(last, TextPiece)
        if same and event.voice == last.voice:
            found[-1] = TextPiece(last.text + event.text, last.voice)
            continue
        if isinstance(event, ArgumentsPiece) and isinstance(last, ArgumentsPiece):
            found[-1] = ArgumentsPiece(last.index, last.text + event.text)
            continue
        found.append(event)
    return found


def read(events: Sequence[ToolEvent]) -> Read:
    """Text, complete calls, and what was none."""
    names = {event.index: event.name for event in events if isinstance(event, CallBegin)}
    calls = [
        Made(names[event.index], event.arguments) for event in events if isinstance(event, CallEnd)
    ]
    text = "".join(event.text for event in events if isinstance(event, TextPiece))
    broken = [event.text for event in events if type(event).__name__ == "CallBroken"]
    return Read(text, calls, broken)


_TEXT = st.text(
    st.sampled_from("ab \n{}[]()<>\"'\\:,=|1é😀\u2028") | st.characters(exclude_categories=["Cs"]),
    max_size=12,
)
_FLAT = st.none() | st.booleans() | st.integers(-(10**15), 10**15) | _TEXT
VALUES = st.recursive(
    _FLAT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=6,
)
CALLS = st.builds(
    Made,
    st.sampled_from([tool.name for tool in TOOLS]),
    st.dictionaries(st.sampled_from("ab"), VALUES, max_size=2),
)
PROSE = st.text("ab <>[]\n'\"{", max_size=15)
"""Text that holds no marker."""


def cuts(text: str, places: Sequence[int]) -> list[str]:
    """`text` cut at some places."""
    marks = sorted({place % (len(text) + 1) for place in places} | {0, len(text)})
    return [text[a:b] for a, b in pairwise(marks)]
