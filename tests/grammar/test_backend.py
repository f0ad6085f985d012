"""Limits, errors and JSON of the llguidance backend, on byte tokens."""

from __future__ import annotations

import json
import re
import time

import numpy as np
import pytest

from branchline.runtime.core.protocols import TokenMatcher
from branchline.runtime.core.sampling_params import Constraint, ConstraintKind
from branchline.runtime.errors import ConstraintError, InvalidRequest, UnsupportedConstraint
from branchline.runtime.grammar.base import accept_forced
from branchline.runtime.grammar.limits import DEFAULT_LIMITS
from branchline.runtime.grammar.llguidance_backend import LLGuidanceBackend
from tests.support.byte_vocabulary import ByteVocabulary

MOST = DEFAULT_LIMITS.enum_values


BACKEND = LLGuidanceBackend(ByteVocabulary(), vocab_size=300)


def matcher(kind: ConstraintKind, text: str) -> TokenMatcher:
    return BACKEND.compile(Constraint(kind=kind, text=text)).matcher()


def accepts(kind: ConstraintKind, constraint: str, text: str) -> bool:
    place = matcher(kind, constraint)
    return all(place.accept(byte) for byte in text.encode()) and place.accept(256)


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("choices", "[]", "list of texts"),
        ("choices", "[1]", "list of texts"),
        ("choices", '"a"', "list of texts"),
        ("choices", "[", "not JSON"),
        (
            "choices",
            json.dumps([str(i) for i in range(MOST + 1)]),
            "list of texts",
        ),
        ("choices", '["\\ud800"]', "surrogate"),
        ("regex", "\ud800", "surrogate"),
        ("regex", "a" * (DEFAULT_LIMITS.pattern_bytes + 1), "too large"),
        ("regex", "(", "not closed"),
        ("json_schema", "{", "not JSON"),
        ("json_schema", "[]", "is an object"),
        ("json_schema", "[" * 50_000, "not JSON"),
    ],
)
def test_malformed_constraints_say_what_is_wrong(
    kind: ConstraintKind, text: str, message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        matcher(kind, text)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("lark", "begin: /a/"),
        ("json_schema", '{"type": "array", "uniqueItems": true}'),
        ("json_schema", '{"type": "no such type"}'),
        ("json_schema", '{"not": {"multipleOf": 3}, "x-guidance": {"lenient": true}}'),
        ("regex", "[^\\s\\S]"),
        ("json_schema", "false"),
    ],
)
def test_what_cannot_be_enforced_is_refused(kind: ConstraintKind, text: str) -> None:
    with pytest.raises(UnsupportedConstraint):
        matcher(kind, text)


@pytest.mark.parametrize("most", [0, 1, 3, 99])
@pytest.mark.parametrize("text", ["xyz[0-9]+end", "abc", "[0-9]xyzab?", "[ab]"])
def test_forced_ids_at_once_are_those_one_by_one(text: str, most: int) -> None:
    def mask(place: TokenMatcher) -> np.ndarray:
        words = np.zeros((1, 10), dtype=np.int32)
        place.fill(words, 0)
        return words

    whole, single = matcher("regex", text), matcher("regex", text)
    for byte in ("7xyzab" if text.startswith("[0-9]") else "xyz7end").encode():
        taken = whole.accept_forced(most)
        assert taken == accept_forced(single, most)
        assert whole.is_terminated() == single.is_terminated()
        assert whole.is_accepting() == single.is_accepting()
        assert whole.forced_tokens() == single.forced_tokens()
        assert (mask(whole) == mask(single)).all()
        if taken:  # back to its middle, and on from there
            back = (len(taken) + 1) // 2
            for place in (whole, single):
                place.rollback(back)
            assert whole.forced_tokens() == single.forced_tokens()
            assert (mask(whole) == mask(single)).all()
            assert whole.accept_forced(back) == accept_forced(single, back) == taken[-back:]
        assert whole.accept(byte) == single.accept(byte)


SPECIAL_TEXTS = ["a.b", "a|b", "(", "[x]", "\\d", "^a$", "é😀", "\x00", "\n", "a/b", '"', "<eos>"]


def test_choices_take_every_character_literally() -> None:
    constraint = json.dumps(SPECIAL_TEXTS)
    for text in SPECIAL_TEXTS:
        assert accepts("choices", constraint, text)
    for text in ("axb", "a", "5", "x", "", "é"):
        assert not accepts("choices", constraint, text)


@pytest.mark.parametrize(
    "pattern",
    [
        "a{1,100000}",
        "(a{1,1000}){1,1000}",
        "((((a{1,99}){1,99}){1,99}){1,99}){1,99}",
        "(.*a.{30}){9}",
        "(a|aa)*" * 50,
        "(?:" + "|".join(f"x{i}y" for i in range(3000)) + ")",
        "(" * 400 + ")" * 400,
        "(x+x+)+y",
        "\x00{1,9}",
        "[a-z]{0,100000}b",
    ],
)
def test_hard_patterns_end_in_a_mask_or_an_error(pattern: str) -> None:
    begun = time.monotonic()
    mask = np.zeros((1, 10), dtype=np.int32)
    try:
        place = matcher("regex", pattern)
        for byte in b"axaxaxaxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx":
            place.fill(mask, 0)
            place.accept(byte)
    except (ConstraintError, InvalidRequest) as error:
        assert error.hint
    assert time.monotonic() - begun < 10


def test_a_failed_matcher_gets_an_empty_mask_and_harms_no_other() -> None:
    from branchline.runtime.grammar import llguidance_backend

    strict = LLGuidanceBackend(ByteVocabulary())
    strict._limits = llguidance_backend.llguidance.LLParserLimits(
        step_lexer_fuel=200, verbose_errors=False
    )
    sick = strict.compile(Constraint(kind="regex", text="(.*a.{30}){9}")).matcher()
    well = strict.compile(Constraint(kind="regex", text="b+")).matcher()
    mask = np.full((3, 9), -1, dtype=np.int32)
    need = np.zeros(3, dtype=np.bool_)
    for _ in range(60):
        need = strict.fill_masks([well, sick, None], mask)
        if strict.failure(sick):
            break
        assert sick.accept(ord("a"))
    assert strict.failure(sick) and not strict.failure(well)
    assert need.tolist() == [True, True, False]
    assert not mask[1].any() and (mask[2] == -1).all()
    assert np.flatnonzero(np.unpackbits(mask[0].view(np.uint8), bitorder="little")).tolist() == [98]
    assert not sick.accept(ord("a"))
    with pytest.raises(ConstraintError):
        sick.fill(mask, 0)
    assert not sick.is_accepting() and not sick.is_terminated()


def test_a_padded_vocabulary_gets_bits_for_every_logit() -> None:
    mask = np.full((1, 10), -1, dtype=np.int32)
    assert matcher("regex", "(?s).*").fill(mask, 0)
    row = np.unpackbits(mask[0].view(np.uint8), bitorder="little")
    assert not row[257:].any() and row[256] and row[65]


@pytest.mark.parametrize(
    ("value", "fits"),
    [
        ('{"name": "x", "age": 3}', True),
        ('{"name":"x","age":3}', False),
        ('{"name": "x"}', False),
        ('{"name": "x", "age": 3.5}', False),
        ('{"name": "é\\n", "age": 0}', True),
    ],
)
def test_json_schema_in_the_spacing_of_json_dumps(value: str, fits: bool) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    assert accepts("json_schema", json.dumps(schema), value) == fits


def test_lark_grammars_are_recursive() -> None:
    grammar = 'start: "(" start ")" | "x"'
    assert accepts("lark", grammar, "((x))")
    assert not accepts("lark", grammar, "((x)")


@pytest.mark.parametrize(
    "pattern", [r"\w", r"\W", r"\s", r"\S", r"\d", r"\D", r"(?i)[a-zß-ÿ]", r"."]
)
def test_classes_allow_nothing_that_python_does_not(pattern: str) -> None:
    """Over the first 3,000 characters and some others; \\d alone allows less than Python."""
    compiled = re.compile(pattern)
    place = matcher("regex", pattern)
    missing = []
    for code in [*range(3000), 0x2028, 0x212A, 0x3000, 0x4E00, 0x1D7D8, 0x1F600, 0x1E9E, 0x2160]:
        twin = place.fork()
        text = chr(code)
        if all(twin.accept(byte) for byte in text.encode()):
            assert compiled.fullmatch(text), hex(code)
        elif compiled.fullmatch(text):
            missing.append(code)
    assert not missing or pattern in (r"\d", r"(?i)[a-zß-ÿ]")


def test_matchers_of_different_engines_allow_the_same() -> None:
    backend = LLGuidanceBackend(ByteVocabulary(), vocab_size=300, threads=4)
    grammar = backend.compile(Constraint(kind="regex", text="[a-c]{2,9}x"))
    rows: list[TokenMatcher | None] = [grammar.matcher() for _ in range(9)]
    for step in range(3):
        bitmask = np.full((len(rows), 10), -1, dtype=np.int32)
        backend.fill_masks(rows, bitmask)
        assert (bitmask == bitmask[0]).all()
        for row in rows:
            assert row is not None and row.accept(ord("abc"[step]))
