"""GBNF texts: how they are read, and what is refused by name."""

from __future__ import annotations

import pytest

from branchline.runtime.errors import InvalidRequest, UnsupportedConstraint
from branchline.runtime.grammar.ebnf import (
    ANY,
    Alt,
    Chars,
    Ref,
    Repeat,
    Seq,
    Text,
    complement,
    read,
)
from branchline.runtime.grammar.limits import Limits


def test_a_grammar_is_read_and_only_what_root_needs_is_kept() -> None:
    rules = read(
        """# a comment
        root ::= value   # another
        value ::= "a" | "\\x00a" [^\\]x-z] |
           "b" ( value
           | "c" )* .
        unused ::= root
        """
    )
    assert rules == {
        "root": Ref("value", 2),
        "value": Alt(
            (
                Text("a"),
                Seq((Text("\x00a"), Chars(complement(((93, 93), (120, 122)))))),
                Seq(
                    (
                        Text("b"),
                        Repeat(Alt((Ref("value", 4), Text("c"))), 0, None),
                        Chars(ANY),
                    )
                ),
            )
        ),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('x ::= "a"', "no rule named root"),
        ("root ::= x", "line 1: there is no rule named x"),
        ('root ::= "a"\nroot ::= "b"', "line 2: rule root is defined twice"),
        ('root ::= ("a"', "not closed"),
        ('root ::= "a")', "line 1"),
        ('root ::= "a" | ', "empty"),
        ('root ::= "a"{3}{2}', "needs a group"),
        ('root ::= "a"{3,2}', "least"),
        ("root ::= [z-a]", "wrong order"),
        ("root ::= []", "empty class"),
        ("root ::= 'a'", "unexpected character"),
        ('root ::= "a', "unexpected character"),
        ('root ::= "\\q"', "unknown escape"),
        ('root ::= "\\u12"', "4 hexadecimal digits"),
        ('root ::= "\\ud800"', "no character"),
        ('root = "a"', "unexpected character"),
        ('root ::= "a"{1000000}', "limit repeat"),
        ("root ::= " + "(" * 70 + '"a"' + ")" * 70, "limit depth"),
        ("\x00", "unexpected character"),
        ("", "no rule named root"),
    ],
)
def test_malformed_grammars_say_where(text: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        read(text)


def test_rules_are_bounded() -> None:
    with pytest.raises(InvalidRequest, match="limit rules"):
        read("".join(f'r{i} ::= "a"\n' for i in range(5)), Limits(rules=4))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("root ::= root", "never end"),
        ('root ::= "a" root', "never end"),
        ('root ::= a | "x"\na ::= b\nb ::= "y" a', "rule a can never end"),
        ('root ::= root | "a"', "itself alone"),
        ('root ::= a\na ::= b | "x"\nb ::= "y"? a', "itself alone"),
        ('root ::= "a" | root*', "itself alone"),
    ],
)
def test_traps_are_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(UnsupportedConstraint, match=message):
        read(text)
