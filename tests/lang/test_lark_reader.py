"""Lark's notation: what the engine allows `lark` parses; what cannot be said is refused by line."""

from __future__ import annotations

from itertools import product

import lark
import pytest

import branchline as bl
from branchline.lang.errors import InvalidRequest

SUMS = 'start: sum\n?sum: term | sum "+" term -> add\n?term: NUMBER | "(" sum ")"\nNUMBER: /1+/\n'
LISTS = '_many{item, sep}: item (sep item)*\nstart: "[" _many{word, ","} "]"\nword: "a" | "b"i~2\n'
WORDS = (
    '%import common.WS_INLINE\n%ignore WS_INLINE\nstart: NAME+ END?\nNAME.2: /[ab]+/\nEND: ";"\n'
)
COMMENT = 'start: COMMENT "x"?\nCOMMENT: "/*" /(.|\\n)*?/ "*/"\n'
OPTIONAL = 'start: ["a"] body "b"*\nbody:\n    | "(" body ")"\n'


@pytest.mark.parametrize(
    ("grammar", "alphabet", "size"),
    [
        (SUMS, "1+()", 5),
        (LISTS, "[],abB", 4),
        (WORDS, "a ;", 5),
        (COMMENT, "/*x", 6),
        (OPTIONAL, "ab()", 5),
    ],
)
def test_what_the_engine_allows_lark_parses(grammar: str, alphabet: str, size: int) -> None:
    parser = lark.Lark(grammar, parser="earley")
    full = 0
    for length in range(1, size + 1):
        for text in map("".join, product(alphabet, repeat=length)):
            try:
                parser.parse(text)
                parses = True
            except lark.exceptions.LarkError:
                parses = False
            found = bl.match(bl.lark(grammar), text).status == "full"
            full += found
            assert parses or not found, text
            if grammar not in (WORDS, COMMENT):  # these divide a text in one way only
                assert found == parses, text
    assert full > 3


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ('"a \\"b\\" c"', "full"),
        ('"a"b"', "none"),
        ('"a', "prefix"),
    ],
)
def test_a_string_of_the_common_library_ends_at_its_quote(text: str, status: str) -> None:
    grammar = bl.lark("%import common.ESCAPED_STRING\nstart: ESCAPED_STRING\n")
    assert bl.match(grammar, text).status == status


@pytest.mark.parametrize(
    ("grammar", "says"),
    [
        ("start: A\n\nA: /(?=x)x/\n", r"lookahead .* \(line 3\)"),
        ('start: "a"\n  | /b(?<!c)/\n', r"lookbehind .* \(line 2\)"),
        ('start: "a" B\n%declare B\n', r"terminal B.* \(line 1\)"),
        ("start: start", r"rule start, of which no text has an end,.* \(line 1\)"),
        ('start: "a" start', r"rule start,"),
    ],
)
def test_what_cannot_be_translated_is_refused_with_its_line(grammar: str, says: str) -> None:
    with pytest.raises(bl.UnsupportedConstraint, match=says):
        bl.gen("x", bl.lark(grammar))


def test_what_could_not_end_is_not_begun() -> None:
    grammar = bl.lark('start: "a" | "b" more\nmore: "c" more | "d" less\nless: "e" more\n')
    assert [bl.match(grammar, text).status for text in ("a", "b", "bc")] == ["full", "none", "none"]


@pytest.mark.parametrize("grammar", ["start: a", 'b: "a"', 'start: "a', "start: A\nA: /[/", "%"])
def test_a_text_that_is_no_grammar_is_an_invalid_request(grammar: str) -> None:
    with pytest.raises(InvalidRequest, match="lark"):
        bl.gen("x", grammar=grammar)


def test_a_grammar_can_be_part_of_a_composition() -> None:
    node = bl.seq("Q: ", bl.capture("sum", bl.lark(SUMS)), "; ", bl.capture("n", list[int]))
    found = bl.match(node, "Q: 1+(11); [1, 2]")
    assert found.captures == {"sum": "1+(11)", "n": [1, 2]}
    with pytest.raises(bl.UnsupportedConstraint, match=r"%ignore .* \(line 2\)"):
        bl.gen("x", bl.seq("a", bl.lark(WORDS)))
