"""Random grammars in Lark's notation, and all their short texts, found without any lexer.

`texts` counts up from the terminals: it joins texts of the parts of each alternative until no new
text appears. It knows nothing of positions, states or tokens, as parsers do.
"""

from __future__ import annotations

import random
import re
from itertools import product

import lark

from branchline.lang.matching import engine_match
from branchline.runtime.core.sampling_params import Constraint

LITERALS = ("a", "b", "ab", "ba", "aab", "abb", ",", "a,", ",b", "aba", "a,b")
PATTERNS = ("/a+/", "/[ab]+/", "/a{1,2}/", "/b?a/", '"ab"i', "/[^a,]/", "/ab*/", "/(ab)+,/")


def all_texts(alphabet: str, most: int) -> list[str]:
    """Every text of at most that many characters."""
    return ["".join(chars) for size in range(most + 1) for chars in product(alphabet, repeat=size)]


def texts(grammar: str, alphabet: str, most: int) -> set[str]:
    """The texts of a grammar that are that short.

    Raises:
        lark.exceptions.LarkError: it is no grammar.
    """
    read = lark.Lark(grammar, parser="earley", maybe_placeholders=False)
    every = all_texts(alphabet, most)
    found: dict[str, set[str]] = {}
    for terminal in read.terminals:
        pattern = re.compile(terminal.pattern.to_regexp())
        found[terminal.name] = {text for text in every if text and pattern.fullmatch(text)}
    blank = {""}
    for _ in range(most):
        blank |= {
            a + b for name in read.ignore_tokens for a in blank for b in found[name]
            if len(a + b) <= most
        }  # fmt: skip
    for terminal in read.terminals:
        found[terminal.name] = _joined(blank, found[terminal.name], most)
    rules = [(str(r.origin.name), [str(s.name) for s in r.expansion]) for r in read.rules]
    found.update({name: set() for name, _ in rules})
    changed = True
    while changed:
        changed = False
        for name, parts in rules:
            whole = {""}
            for part in parts:
                whole = _joined(whole, found[part], most)
            changed = changed or not whole <= found[name]
            found[name] |= whole
    return _joined(found["start"], blank, most)


def _joined(first: set[str], second: set[str], most: int) -> set[str]:
    return {a + b for a in first for b in second if len(a) + len(b) <= most}


def random_grammar(seed: int) -> str:
    """A small grammar over the letters a and b, the comma and the space; may be no grammar."""
    rng = random.Random(seed)
    names = ["start", "x", "y"][: rng.randint(1, 3)]
    tokens = rng.sample(PATTERNS, rng.randint(0, 2))
    lines = [f"{name}: {_alternatives(rng, names, len(tokens))}" for name in names]
    lines += [f"T{at}: {token}" for at, token in enumerate(tokens)]
    if rng.random() < 0.25:
        lines.append(rng.choice(['%ignore " "', "%ignore / +/", '%ignore " "\n%ignore ", "']))
    return "\n".join(lines) + "\n"


def _alternatives(rng: random.Random, names: list[str], tokens: int) -> str:
    bodies = []
    for _ in range(rng.randint(1, 3)):
        parts = [_part(rng, names, tokens) for _ in range(rng.randint(1, 3))]
        bodies.append(" ".join(parts))
    return " | ".join(bodies)


def _part(rng: random.Random, names: list[str], tokens: int) -> str:
    kind = rng.random()
    if kind < 0.5 or (kind < 0.7 and not tokens):
        part = f'"{rng.choice(LITERALS)}"'
    elif kind < 0.7:
        part = f"T{rng.randrange(tokens)}"
    elif kind < 0.9:
        part = rng.choice(names)
    else:
        inner = (_part(rng, names, tokens) for _ in range(2))
        part = f"({' | '.join(inner)})"
    return part + rng.choice(["", "", "", "", "?", "*", "+", "~1..2"])


def differences(grammar: str, constraint: Constraint, alphabet: str, most: int) -> list[str]:
    """Texts on which the engine and the oracle differ, and how."""
    wanted = texts(grammar, alphabet, most)
    begun = {text[:end] for text in wanted for end in range(len(text) + 1)}
    found: list[str] = []
    for text in all_texts(alphabet, most):
        status = engine_match(constraint, text).status
        if (status == "full") != (text in wanted):
            found.append(f"{text!r}: {status}, {'allowed' if text in wanted else 'not allowed'}")
        elif text in begun and status == "none":
            found.append(f"{text!r}: refused, and is the beginning of a text")
    return found
