"""Searching for a pattern: the answers of `re` where both read it alike, in bounded time always."""

from __future__ import annotations

import itertools
import random
import re
import sys
import time
import tracemalloc
import unicodedata
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from branchline.runtime.grammar.json_schema.languages import Languages
from branchline.runtime.grammar.json_schema.patterns import search_language
from branchline.runtime.patterns.ecma import PatternError
from branchline.runtime.patterns.search import Search, search_for

TEXTS = [
    *("".join(chars) for n in range(5) for chars in itertools.product("ab1 ", repeat=n)),
    *("é", "aé b", "\U0001f600", "a\nb", "foo", "food", "a_b", "-", "\t", "ab" * 40),
]
PATTERNS = [
    "",
    "a",
    "^$",
    "^ab$|^b",
    "(a+)+$",
    "^(a|aa)+1",
    r"\bab\b",
    r"\B1",
    "^(?!.*ab).*$",
    "(?=.*a)(?=.*1)^[a1]+$",
    "a(?=b(?!1))",
    "(?:(?=a)[ab]1?){2}",
    "^[^a]{1,3}$",
    "(a{0,2}b){2,}",
    r"^\d+$",
    r"^\S+\s\S*$",
    "(?s)a.b",
    "(?i)AB",
    "[^\\w]$",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_it_finds_what_re_finds(pattern: str) -> None:
    search, oracle = Search(pattern), re.compile(pattern.replace("$", r"\Z"), re.ASCII)
    for text in TEXTS:
        assert search.found_in(text) is (oracle.search(text) is not None), text


def patterns() -> st.SearchStrategy[str]:
    atoms = st.sampled_from(["a", "b", ".", "[ab]", "[^a]", r"\w", r"\s", "^", "$", r"\b", ""])

    def extend(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        counts = st.sampled_from(["*", "+", "?", "{2}", "{1,2}", "{0,3}", "{2,}"])
        return st.one_of(
            st.tuples(inner, inner).map("".join),
            st.tuples(inner, inner).map(lambda pair: f"(?:{pair[0]}|{pair[1]})"),
            st.tuples(inner, counts).map(lambda pair: f"(?:{pair[0]}){pair[1]}"),
            inner.map(lambda one: f"(?={one})"),
            inner.map(lambda one: f"(?!{one})"),
        )

    return st.recursive(atoms, extend, max_leaves=7)


@settings(deadline=None, derandomize=True, max_examples=400)
@given(patterns(), st.lists(st.text("ab 1", max_size=8), min_size=1, max_size=6))
def test_any_pattern_is_found_where_re_finds_it(pattern: str, texts: list[str]) -> None:
    search, oracle = Search(pattern), re.compile(pattern.replace("$", r"\Z"), re.ASCII)
    for text in texts:
        assert search.found_in(text) is (oracle.search(text) is not None)


@pytest.mark.parametrize("pattern", ["^(a|b)*$", r"^\w+( \w+)*$", "(?!a)b"])
def test_it_agrees_with_what_the_grammar_enforces(pattern: str) -> None:
    languages = Languages()
    language, search = search_language(languages, pattern), Search(pattern)
    for text in TEXTS:
        assert search.found_in(text) is languages.has(language, text)


@pytest.mark.parametrize(
    "pattern",
    ["(a+)+$", "(a|a)*b", "(a|aa)+$", "^(a*)*b", "(.*)(.*)(.*)(.*)x", "^(?:a?){40}a{40}$"],
)
def test_no_pattern_takes_long(pattern: str) -> None:
    begun = time.monotonic()
    assert Search(pattern).found_in("a" * 50_000 + "!") in (False, None)
    assert time.monotonic() - begun < 20


@pytest.mark.parametrize("name", ["Lu", "L", "Cn", "Co", "Nd", "Decimal_Number"])
def test_categories_are_those_of_unicode(name: str) -> None:
    search, negated = Search(rf"^\p{{{name}}}$"), Search(rf"^\P{{{name}}}$")
    short = "Nd" if name == "Decimal_Number" else name
    edges = [block * 4096 + near for block in range(0x110) for near in (-1, 0, 1)]
    codes = [*range(0x600), *edges, *random.Random(2).choices(range(0x110000), k=500), 0x10FFFF]
    for code in codes:
        if code >= 0 and not 0xD800 <= code <= 0xDFFF:
            inside = unicodedata.category(chr(code)).startswith(short)
            assert search.found_in(chr(code)) is inside, hex(code)
            assert negated.found_in(chr(code)) is not inside, hex(code)


STEPPING = "x[ab]{12}a|b[ab]{12}a$"
"""Comes to a new set of states with nearly every character of a random text."""


def random_texts(count: int, length: int = 3000) -> list[str]:
    rng = random.Random(1)
    return ["".join(rng.choices("ab", k=length)) for _ in range(count)]


def test_several_threads_may_use_a_search_at_once() -> None:
    texts = random_texts(6)
    expected = [Search(STEPPING).found_in(text) for text in texts]
    assert set(expected) == {True, False}
    shared = Search(STEPPING)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(shared.found_in, texts * 8))
    finally:
        sys.setswitchinterval(before)
    assert found == expected * 8


def test_what_a_search_remembers_is_bounded() -> None:
    texts = random_texts(2, 5_000)
    search = Search("x[ab]{40}a")
    tracemalloc.start()
    for text in texts:
        search.found_in(text)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 1_000_000


def test_too_much_work_has_no_answer_and_what_cannot_be_searched_no_search() -> None:
    mixed = "".join(random.Random(5).choices("ab", k=20_000))
    assert Search("x[ab]{900}a").found_in(mixed) is None
    assert Search("x[ab]{9}a").found_in(mixed) is False
    for pattern in ("(?<=a)b", r"(a)\1", "(", "(?:a{999}){999}"):
        with pytest.raises(PatternError):
            Search(pattern)
        assert search_for(pattern) is None
