"""Lark's notation is enforced exactly: by text and by beginning of a text, against two oracles.

One joins texts and knows no parser (`lark_oracle`); the other is `lark`'s Earley parser with all
ways to divide a text.
"""

from __future__ import annotations

import lark
import pytest

import branchline as bl
from branchline.lang.lark_reader import translate
from branchline.runtime.core.sampling_params import Constraint
from tests.lang.lark_oracle import (
    all_texts,
    differences,
    random_grammar,
    texts,
)

JOINED = 'start: "S" (" FROM a" | " FROM a JOIN b") (" WHERE x")?\n'
NESTED = 'start: "(" start ")" | name\nname: "a" | "a and b" | name " and " name\n'
WORD_BEFORE_LITERAL = 'start: WORD "ab" | "[" start "]"\nWORD: /[ab]+/\n'
TWO_WORDS = 'start: WORD WORD | "[" start "]"\nWORD: /a+/\n'
SHORTER_LONGER = 'start: (A | B) C | "[" start "]"\nA: "a"\nB: "aab"\nC: "ab"\n'
EITHER_CASE = 'start: "ab"i* "AB" | "[" start "]"\n'
LAZY = 'start: C "b"? | "[" start "]"\nC: /a.*?b/\n'
BEYOND_ASCII = 'start: ("é" | "éé") "è" | "[" start "]"\n'
BLANKS = 'start: "a" start "b" | "a"\n%ignore " "\n'
BLANKS_INSIDE = 'start: T "b" | "[" start "]"\nT: /[a ]+/\n%ignore " "\n'
EMPTY = 'start: "[" x "]"\nx: | x "a" | "aa"\n'
ONE_FROM_TWO = 'start: "aba"? | ("a" | "a,")? "ba"\n'


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("S FROM a WHERE x", "full"),
        ("S FROM a", "full"),
        ("S FROM a ", "prefix"),
        ("S FROM a JOIN b WHERE x", "full"),
        ("S FROM a JOIN WHERE x", "none"),
    ],
)
def test_a_literal_that_begins_like_a_longer_one_can_end(text: str, status: str) -> None:
    assert bl.match(bl.lark(JOINED), text).status == status


@pytest.mark.parametrize(
    ("grammar", "alphabet", "most"),
    [
        (NESTED, "a nd", 4),
        (WORD_BEFORE_LITERAL, "ab[]", 5),
        (TWO_WORDS, "a[]", 6),
        (SHORTER_LONGER, "ab[]", 5),
        (EITHER_CASE, "aAbB[", 5),
        (BEYOND_ASCII, "éè[]", 5),
        (BLANKS, "ab ", 6),
        (BLANKS_INSIDE, "ab []", 5),
        (EMPTY, "a[]", 6),
        (ONE_FROM_TWO, "ab,", 5),
    ],
)
def test_what_is_allowed_is_what_the_grammar_allows(grammar: str, alphabet: str, most: int) -> None:
    constraint = Constraint(kind="lark", text=translate(grammar))
    assert differences(grammar, constraint, alphabet, most) == []


@pytest.mark.parametrize("text", ["ab", "abb", "[acb]"])
def test_a_lazy_terminal_ends_at_its_first_match_and_loses_nothing(text: str) -> None:
    assert bl.match(bl.lark(LAZY), text).status == "full"
    assert bl.match(bl.lark(LAZY), "abcb").status == "none"


def test_a_comment_ends_where_it_must() -> None:
    grammar = bl.lark('start: "x" start | "y"\nC: /#[^\\n]*/\nN: "\\n"\n%ignore C\n%ignore N\n')
    assert bl.match(grammar, "x#xy").status == "prefix"
    assert bl.match(grammar, "x#xy\ny#x").status == "full"


def test_a_count_that_overlaps_what_follows_is_refused_by_name() -> None:
    grammar = 'start: "(" start ")" | LONG "b"\nLONG: /[ab]{1,900}(a[ab]{11}){1,2}/\n'
    with pytest.raises(bl.UnsupportedConstraint, match=r"terminal LONG, .* \(line 2\)"):
        bl.gen("x", bl.lark(grammar))


def test_the_oracle_finds_what_the_earley_parser_parses() -> None:
    for grammar, alphabet in ((NESTED, "a nd"), (WORD_BEFORE_LITERAL, "ab[]"), (EMPTY, "a[]")):
        parser = lark.Lark(grammar, parser="earley", lexer="dynamic_complete")
        wanted = texts(grammar, alphabet, 4)
        for text in all_texts(alphabet, 4)[1:]:
            try:
                parser.parse(text)
                parses = True
            except lark.exceptions.LarkError:
                parses = False
            assert parses == (text in wanted), (grammar, text)


def _differences_of(seeds: range) -> tuple[list[str], int]:
    """What is wrong with random grammars, and how many of them allow a text."""
    found: list[str] = []
    checked = 0
    for seed in seeds:
        grammar = random_grammar(seed)
        alphabet = "ab, " if "%ignore" in grammar else "ab,"
        try:
            some = texts(grammar, alphabet, 4)
        except lark.exceptions.LarkError:
            continue
        if not some:
            continue
        checked += 1
        constraint = Constraint(kind="lark", text=translate(grammar))
        wrong = differences(grammar, constraint, alphabet, 4)
        found += [f"{seed}: {one}" for one in wrong]
    return found, checked


def test_random_grammars_are_enforced_exactly() -> None:
    found, checked = _differences_of(range(60))
    assert found == []
    assert checked > 40


@pytest.mark.slow
def test_many_random_grammars_are_enforced_exactly() -> None:
    found, checked = _differences_of(range(1_000, 5_000))
    assert found == []
    assert checked > 3_000
