"""Patterns, their algebra and their spelling in JSON against `re`."""

from __future__ import annotations

import itertools
import json
import re

import llguidance
import pytest

from branchline.runtime.grammar.json_schema.formats import FORMATS
from branchline.runtime.grammar.json_schema.languages import Languages
from branchline.runtime.grammar.json_schema.patterns import search_language
from branchline.runtime.grammar.json_schema.spelling import Speller
from branchline.runtime.patterns.ecma import PatternError
from branchline.runtime.patterns.ranges import EVERY, intersect_ranges, invert_ranges, ranges_of
from tests.grammar.json_schema.harness import tokenizer

TEXTS = [
    *("".join(chars) for n in range(4) for chars in itertools.product("ab1 ", repeat=n)),
    *("é", "aé b", "\U0001f600", "a\nb", 'q"z', "\\", "foo", "food", "a_b", "\x07", "-", "\t"),
]
PATTERNS = [
    "ab",
    "^ab$",
    "^a|b$",
    r"\d+",
    r"^\w+$",
    "^(?!a)",
    "^(?!.*ab).*$",
    r"\bab\b",
    "^.{2,3}$",
    r"^[^a]*$",
    r"^\S+\s\S+$",
    "(?=.*a)(?=.*1)^[a1]+$",
    "^$",
    "",
    "a*",
    "^[\u00e9-\u00ff]",
    r"\Ba",
    r"\.",
    r"^(foo|\d)$",
    r"[\w.-]+",
    "(?i)^A",
    "a?^b",
    r"^([ab]+)?\b1",
    "(^a|b){2}",
    "^(?:a(?=b)|b)",
    "a{2}",
    "a{1,}b",
    "(?:a|b1){2,3}$",
    r"\x61\u0062",
    r"[\d-a]",
    "a{,2}",
    r"[\]a]",
    "(?<n>a)b",
    r"^\cA",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_search_agrees_with_re(pattern: str) -> None:
    languages = Languages()
    language = search_language(languages, pattern)
    start = llguidance.LLMatcher(
        tokenizer(),
        llguidance.LLMatcher.grammar_from_lark(
            f"start: T\nT: {Speller(languages).quoted(language)}"
        ),
        log_level=0,
    )
    python = pattern.replace("$", r"\Z").replace("(?<n>", "(?P<n>").replace("a{,2}", r"a\{,2\}")
    oracle = re.compile(python.replace(r"\cA", r"\x01").replace(r"[\d-a]", r"[\d\-a]"), re.ASCII)
    for text in TEXTS:
        expected = oracle.search(text) is not None
        assert languages.has(language, text) == expected, text
        for ascii_only in (True, False):
            data = list(json.dumps(text, ensure_ascii=ascii_only).encode())
            matcher = start.deep_copy()
            accepted = matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting()
            assert accepted == expected, text


@pytest.mark.parametrize(
    "pattern",
    [
        "(",
        ")",
        "[a",
        "*a",
        "a**",
        "(?<=a)b",
        r"(a)\1",
        r"\k<n>",
        "(?:^a)*",
        r"\p{No such}",
        "a{3,2}",
        r"\q",
        "[b-a]",
        "(?>a)",
        r"\u12",
        "\ud800",
        "a" * 3 + "{200000}",
        "(" * 200 + ")" * 200,
    ],
)
def test_what_is_not_read_is_refused(pattern: str) -> None:
    with pytest.raises(PatternError):
        search_language(Languages(), pattern)


def test_union_intersection_and_complement_are_those_of_sets() -> None:
    make = Languages()
    parts = [search_language(make, pattern) for pattern in ("^a", "b$", "^.{2}$", "1|a")]
    for left, right in itertools.combinations(parts, 2):
        for text in TEXTS:
            one, other = make.has(left, text), make.has(right, text)
            assert make.has(make.any([left, right]), text) == (one or other)
            assert make.has(make.all([left, right]), text) == (one and other)
            assert make.has(make.minus(left, right), text) == (one and not other)


@pytest.mark.parametrize(
    ("pattern", "count"),
    [
        ("^$", 1),
        ("^(a|b|ab)$", 3),
        ("^[ab1]{2}$", 9),
        ("^[ab]{0,3}$", 15),
        ("^a?b?1?$", 8),
        ("^(?!b)[ab]{2}$", 2),
        ("^.$", None),
        ("^a*$", None),
        ("a", None),
        ("^[ab1]{3}$", None),
    ],
)
def test_the_texts_of_a_small_language(pattern: str, count: int | None) -> None:
    make = Languages()
    language = search_language(make, pattern)
    found = make.texts(language, 20)
    if count is None:
        assert found is None
        return
    assert found == {text for text in TEXTS if re.search(pattern.replace("$", r"\Z"), text)}
    assert len(found) == count


@pytest.mark.parametrize(
    ("patterns", "empty"),
    [
        (["^a", "^b"], True),
        (["^a", "a$"], False),
        (["^.{3}$", "^(ab)*$"], True),
        (["^[a-z]+$", "^(?!abc)"], False),
        (["^a+$", "^(?!a)"], True),
        (["^.{0,200}$", "^a{201}$"], True),
    ],
)
def test_emptiness_of_intersections(patterns: list[str], empty: bool) -> None:
    make = Languages()
    both = make.all([search_language(make, pattern) for pattern in patterns])
    assert make.is_empty(both) is empty


def test_emptiness_is_given_up_within_the_budget() -> None:
    make = Languages(budget=50)
    both = make.all([search_language(make, "^.{300}$"), search_language(make, "^a*b$")])
    assert make.is_empty(both) is None


def test_words_are_the_words() -> None:
    make = Languages()
    words = {"", "a", "ab", "abc", "b", "bc", "é"}
    language = make.words(words)
    assert {text for text in [*TEXTS, "abc", "bc", "c"] if make.has(language, text)} == words


def test_ranges() -> None:
    some = ranges_of([(5, 9), (1, 3), (4, 4), (0xD000, 0xE000)])
    assert some == ((1, 9), (0xD000, 0xD7FF), (0xE000, 0xE000))
    assert invert_ranges(invert_ranges(some)) == some
    assert intersect_ranges(some, invert_ranges(some)) == ()
    assert intersect_ranges(some, EVERY) == some


def test_every_format_is_a_pattern() -> None:
    for name, pattern in FORMATS.items():
        make = Languages()
        language = search_language(make, f"^(?:{pattern})$")
        assert not make.has(language, "(\x00"), name  # no format has such a text


def test_a_finite_regex_is_one_that_compiles() -> None:
    make = Languages()
    language = search_language(make, f"^(?:{FORMATS['regex']})$")
    taken: set[str] = set()
    for text in (
        "a{2,1}",
        "a{1,2}",
        "[a-z]",
        "[z-a]",
        "(a|b)*",
        "(?:a)",
        "\\d",
        "a|*",
        "[]",
        "$^",
        "x{",
    ):
        if make.has(language, text):
            re.compile(text)
            taken.add(text)
    assert {"a{1,2}", "[a-z]", "(a|b)*", "(?:a)", "\\d"} <= taken
    assert not {"a{2,1}", "[z-a]"} & taken
