"""Reasoning told from the answer: the same however a text is split, for every format."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from branchline.runtime.core.section import Section, SectionScan
from branchline.runtime.errors import InvalidRequest
from branchline.runtime.responses.reasoning import (
    FORMATS,
    AnswerPiece,
    Position,
    ReasoningFormat,
    ReasoningParser,
    ReasoningPiece,
    detect_reasoning,
    format_named,
    split,
)

THINK = FORMATS["think"]
HARMONY = FORMATS["harmony"]
POSITIONS: tuple[Position, ...] = ("open", "closed", "undecided")


def texts_of(format: ReasoningFormat) -> st.SearchStrategy[str]:
    """Texts full of markup, whole and cut."""
    markup = [format.begin, format.end, format.gap, format.again, format.answer, "\n", " ", "a<"]
    whole = st.sampled_from([text for text in markup if text])
    cut = st.builds(lambda text, n: text[: n % len(text) + 1], whole, st.integers(0, 60))
    return st.lists(st.one_of(whole, cut, st.text("ab\n <|", max_size=4)), max_size=8).map("".join)


def joined(format: ReasoningFormat, position: Position, pieces: list[str]) -> tuple[str, str, bool]:
    parser = ReasoningParser(format, position)
    found = [event for piece in pieces for event in parser.feed(piece)] + parser.finish()
    assert all(event.text for event in found)
    kinds = [isinstance(event, AnswerPiece) for event in found]
    assert kinds == sorted(kinds), "the answer comes behind the reasoning"
    thought = "".join(e.text for e in found if isinstance(e, ReasoningPiece))
    text = "".join(pieces)
    sections = [text[begin:end].strip() for begin, end in parser.sections]
    assert "\n\n".join(filter(None, sections)) == thought
    return thought, "".join(e.text for e in found if isinstance(e, AnswerPiece)), parser.complete


@given(data=st.data())
def test_every_split_gives_the_same(data: st.DataObject) -> None:
    format = FORMATS[data.draw(st.sampled_from(sorted(FORMATS)))]
    position = data.draw(st.sampled_from(POSITIONS))
    text = data.draw(texts_of(format))
    cuts = sorted({0, len(text), *data.draw(st.lists(st.integers(0, len(text)), max_size=8))})
    pieces = [text[a:b] for a, b in pairwise(cuts)]
    whole = joined(format, position, [text])
    assert joined(format, position, pieces) == whole
    assert joined(format, position, list(text)) == whole
    assert tuple(split(format, text, position)) == whole


@given(data=st.data())
def test_a_well_formed_output_is_divided_where_it_was_put_together(data: st.DataObject) -> None:
    format = FORMATS[data.draw(st.sampled_from(sorted(FORMATS)))]
    plain = st.text("ab cé\n", max_size=12)
    thought, answer = data.draw(plain), data.draw(plain)
    text = thought + format.end + format.gap + answer
    assert split(format, text, "open") == (thought.strip(), answer, True)
    whole = split(format, format.begin + text)
    assert whole == (thought.strip(), answer, True)


@pytest.mark.parametrize(
    ("text", "position", "found"),
    [
        ("hm", "open", ("hm", "", False)),
        ("hm</thi", "open", ("hm</thi", "", False)),
        ("hm</think>\n\n\n42", "open", ("hm", "\n42", True)),
        ("hm</think>42", "open", ("hm", "42", True)),
        ("\n<think>\nhm\n</think>\n\n42", "undecided", ("hm", "42", True)),
        ("\n42 <think>", "undecided", ("", "\n42 <think>", True)),
        ("<think>42", "closed", ("", "<think>42", True)),
        ("<thi", "undecided", ("", "<thi", True)),
    ],
)
def test_tags(text: str, position: Position, found: tuple[str, str, bool]) -> None:
    assert split(THINK, text, position) == found


def test_channels() -> None:
    two = f"{HARMONY.begin}one{HARMONY.end}{HARMONY.again}two{HARMONY.end}{HARMONY.gap}42"
    assert split(HARMONY, two) == ("one\n\ntwo", "42", True)
    assert split(HARMONY, "<|channel|>final<|message|>42") == ("", "42", True)
    call = "<|start|>assistant<|channel|>commentary to=f<|message|>{}"
    assert split(HARMONY, f"hm{HARMONY.end}{call}", "open") == ("hm", call, True)


def test_formats_are_found_in_templates() -> None:
    hybrid = "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
    found = detect_reasoning(hybrid)
    assert found is not None and (found.name, found.off) == ("think", "<think>\n\n</think>\n\n")
    always = detect_reasoning("…{{ '<think>\\n' }}…content.split('</think>')")
    assert always == THINK and always.off == "" and always.by_default
    asked = detect_reasoning("{% if thinking %}Think in <think></think>.{% endif %}")
    assert asked is not None and (asked.name, asked.by_default) == ("think", False)
    harmony = detect_reasoning("<|start|>assistant<|channel|>analysis<|message|>")
    assert harmony is not None and harmony.name == "harmony"
    mistral = detect_reasoning("[SYSTEM_PROMPT][THINK]…[/THINK][/SYSTEM_PROMPT]")
    assert mistral is not None and mistral.name == "mistral"
    assert detect_reasoning("<|im_start|>{{ message.role }}") is None
    assert detect_reasoning("") is None


def test_where_a_turn_stands() -> None:
    start = "<|im_start|>assistant\n"
    assert THINK.position(start) == "undecided"
    assert THINK.position(start + "<think>\n") == "open"
    assert THINK.position(start + "<think>\n\n</think>\n\n") == "closed"
    assert THINK.position(start + "</think>") == "closed"
    assert HARMONY.position("<|start|>assistant<|channel|>final<|message|>") == "closed"


def test_formats_have_the_names_that_servers_use() -> None:
    assert format_named("deepseek-r1") is THINK and format_named("GPT-OSS") is HARMONY
    with pytest.raises(InvalidRequest, match="unknown reasoning format"):
        format_named("nothing")


@given(data=st.data())
def test_a_section_ends_at_the_first_marker_and_its_gap(data: st.DataObject) -> None:
    end = data.draw(st.sampled_from(["</t>", "aab", "abab"]))
    gap = data.draw(st.sampled_from(["", "\n\n", "ab"]))
    text = data.draw(st.text("ab\n</t>", max_size=30))
    scan = SectionScan(Section(end=end, gap=gap))
    inside = behind = ""
    for char in text:
        one, two = scan.feed(char)
        inside, behind = inside + one, behind + two
    before, found, rest = text.partition(end)
    taken = next((n for n in range(len(gap), 0, -1) if rest.startswith(gap[:n])), 0)
    assert inside == before + found + rest[:taken]
    assert behind == rest[taken:]
    assert "".join(SectionScan(Section(end=end, gap=gap)).feed(text)) == text
