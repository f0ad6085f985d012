"""The rewriting of patterns: what is refused, by name; the rest is checked by enumeration."""

from __future__ import annotations

import re
import warnings

import pytest

from branchline.runtime.errors import InvalidRequest, UnsupportedConstraint
from branchline.runtime.grammar.regex_dialect import literal, to_automaton_regex


@pytest.mark.parametrize(
    ("pattern", "named"),
    [
        (r"a(?=b)", "lookahead"),
        (r"a(?!b)", "negative lookahead"),
        (r"(?<=a)b", "lookbehind"),
        (r"(?<!a)b", "negative lookbehind"),
        (r"(a)\1", "backreference"),
        (r"(?P<x>a)(?P=x)", "backreference"),
        (r"(a)?(?(1)b|c)", "conditional"),
        (r"(?>a)b", "atomic"),
        (r"a*+b", "possessive"),
        (r"a{1,2}+b", "possessive"),
        (r"\bfoo", "word boundary"),
        (r"fo\Bo", "word boundary"),
        (r"(?x) a", "flag 'x'"),
        (r"(?a:\w)", "flag 'a'"),
        (r"a^b", "start anchor"),
        (r"(^a)b", "start anchor"),
        (r"a$b", "end anchor"),
        (r"(a$)", "end anchor"),
        (r"a{1,1000000000}", "repetition of more than"),
    ],
)
def test_what_cannot_be_enforced_is_named(pattern: str, named: str) -> None:
    re.compile(pattern)
    with pytest.raises(UnsupportedConstraint, match=re.escape(named)):
        to_automaton_regex(pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        "(a",
        "a)",
        "[a",
        "[]",
        "*a",
        "a**",
        "a{2}{3}",
        "(?<n>a)",
        "(?P<1>a)",
        "\\",
        "\\q",
        "[z-a]",
        "[\\d-z]",
        "\\x1",
        "\\u12",
        "(?",
        "(?#a",
        "a{3,1}",
        "^*a",
        "\\N{no such name}",
        "(?i-:a)",
    ],
)
def test_what_python_refuses_is_refused(pattern: str) -> None:
    with pytest.raises(re.error):
        re.compile(pattern)
    with pytest.raises(InvalidRequest, match="position"):
        to_automaton_regex(pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        r"[[a]",
        r"[a&&b]",
        r"[a~~b]",
        r"[--a]",
        r"[a||b]",
        r"[]a]",
        r"[^]a]",
        r"[\]\[]",
        r"{a}",
        r"a{,}",
        r"a{x",
        r"\{\}",
        r"[\b]",
        r"#&~-",
        r"\08",
        r"a\/b",
        r"(?#note)a",
    ],
)
def test_rewriting_keeps_the_meaning_for_python(pattern: str) -> None:
    """The rewritten pattern, read by Python (its code points spelled Python's way), is the same."""
    rewritten = re.sub(
        r"\\x\{([0-9a-f]+)\}", lambda m: f"\\U{int(m[1], 16):08x}", to_automaton_regex(pattern)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        before, after = re.compile(pattern), re.compile(rewritten)
    for text in [chr(i) for i in range(256)] + ["#&~-", "{a}", "a{x", "{}", "\x008", "a/b", "aa"]:
        assert bool(before.fullmatch(text)) == bool(after.fullmatch(text)), text


def test_literals_are_escaped() -> None:
    assert literal("a.b|é") == r"a\x{2e}b\x{7c}\x{e9}"
    with pytest.raises(InvalidRequest, match="surrogate"):
        literal("\ud800")
