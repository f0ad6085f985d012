"""Grammars as they are written for the engine, against languages enumerated from their trees."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from branchline.runtime.core.sampling_params import Constraint
from branchline.runtime.errors import UnsupportedConstraint
from branchline.runtime.grammar.ebnf import Alt, Chars, Node, Ref, Repeat, Seq, Text, write
from tests.grammar.conformance.tiny_backends import byte_xgrammar, spells


def words(node: Node, rules: dict[str, Node], longest: int, depth: int = 8) -> set[str]:
    """Every text of a tree up to a length, over the letters a to c."""
    if depth == 0:
        return set()
    match node:
        case Text(value):
            found = {value}
        case Chars(ranges):
            found = {c for c in "abc" if any(low <= ord(c) <= high for low, high in ranges)}
        case Ref(name):
            found = words(rules[name], rules, longest, depth - 1)
        case Alt(parts):
            found = set().union(*(words(part, rules, longest, depth) for part in parts))
        case Seq(parts):
            found = {""}
            for part in parts:
                found = joined(found, words(part, rules, longest, depth), longest)
        case Repeat(part, least, most):
            inner = words(part, rules, longest, depth)
            found, run = ({""} if least == 0 else set()), {""}
            for count in range(1, min(most if most is not None else longest + least, 9) + 1):
                run = joined(run, inner, longest)
                found |= run if count >= least else set()
    return {word for word in found if len(word) <= longest}


def joined(left: set[str], right: set[str], longest: int) -> set[str]:
    return {a + b for a, b in itertools.product(left, right) if len(a + b) <= longest}


LEAVES = st.sampled_from([Text("a"), Text("b"), Text("ab"), Text(""), Chars(((97, 98),))])
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: Seq(tuple(parts))),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: Alt(tuple(parts))),
        st.tuples(inner, st.sampled_from([(0, None), (1, None), (0, 1), (2, 3), (0, 0)])).map(
            lambda pair: Repeat(pair[0], *pair[1])
        ),
    ),
    max_leaves=6,
)


@settings(deadline=None, derandomize=True, max_examples=150)
@given(TREES)
def test_the_engine_reads_what_is_written(tree: Node) -> None:
    """Random trees: every text of three letters is accepted exactly when it is of the language."""
    text = write({"root": tree})
    language = words(tree, {}, 4)
    try:
        grammar = byte_xgrammar().compile(Constraint(kind="ebnf", text=text))
    except UnsupportedConstraint:
        assert not language
        return
    for length in range(5):
        for letters in itertools.product("abc", repeat=length):
            word = "".join(letters)
            assert spells(grammar, word) == (word in language), (text, word)


A, B = Text("a"), Text("b")
RECURSIVE: dict[str, dict[str, Node]] = {
    "palindromes with a recursive root": {
        "root": Alt((Seq((A, Ref("root"), A)), Seq((B, Ref("root"), B)), A, B, Text("")))
    },
    "left recursion": {"root": Alt((Seq((Ref("root"), A)), B))},
    "ambiguous": {"root": Alt((Seq((Ref("root"), Ref("root"))), A, B))},
    "nullable in the middle": {
        "root": Seq((Ref("x"), B, Ref("x"))),
        "x": Alt((Seq((A, Ref("x"))), Text(""))),
    },
    "brackets": {"root": Repeat(Seq((A, Ref("root"), B)), 0, None)},
    "mutual": {
        "root": Alt((Seq((A, Ref("x"))), A)),
        "x": Alt((Seq((B, Ref("root"))), B)),
    },
}


@pytest.mark.parametrize("name", RECURSIVE)
def test_recursive_grammars_have_the_language_of_their_trees(name: str) -> None:
    rules = RECURSIVE[name]
    language = words(rules["root"], rules, 6)
    grammar = byte_xgrammar().compile(Constraint(kind="ebnf", text=write(rules)))
    for length in range(7):
        for letters in itertools.product("ab", repeat=length):
            word = "".join(letters)
            assert spells(grammar, word) == (word in language), word


@pytest.mark.parametrize(
    ("text", "yes", "no"),
    [
        ('root ::= "\\x00a\\"\\\\"', '\x00a"\\', "\n"),
        ("root ::= [^a\\]\\n]", "é", "]"),
        ("root ::= [-a]", "-", "b"),
        ("root ::= [\\u00e9-\\u00ff]", "ü", "ä~"),
        ("root ::= .", "\n", "ab"),
        ('root ::= "😀"', "😀", "\U0001f601"),
        ('root ::= "a" "b"{2}', "abb", "ab"),
        ('root ::= ""', "", "a"),
    ],
)
def test_escapes_and_classes(text: str, yes: str, no: str) -> None:
    grammar = byte_xgrammar().compile(Constraint(kind="ebnf", text=text))
    assert spells(grammar, yes) and not spells(grammar, no)
