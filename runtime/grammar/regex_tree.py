r"""Patterns as grammar trees. Invariant: a tree matches what the pattern matches as a whole.

Reads only what `regex_dialect.to_automaton_regex` writes, so that every class and escape has one
meaning. Properties (`\p{L}` …) become ranges of code points by Python's own Unicode tables.
"""

from __future__ import annotations

import functools
import itertools
import unicodedata

from branchline.runtime.errors import UnsupportedConstraint
from branchline.runtime.grammar.ebnf import ANY, Alt, Chars, Node, Ranges, Repeat, Seq, Text
from branchline.runtime.grammar.ebnf import complement as all_but
from branchline.runtime.grammar.limits import DEFAULT_LIMITS, Limits, check_repeats, exceeded
from branchline.runtime.grammar.regex_dialect import to_automaton_regex

_NO_NEWLINE = all_but(((10, 10),))


def pattern_tree(
    pattern: str, limits: Limits = DEFAULT_LIMITS, *, both_cases: bool = False
) -> Node:
    """Tree of a Python pattern.

    Args:
        both_cases: write out the characters of flag i instead of refusing it.

    Raises:
        InvalidRequest, UnsupportedConstraint: as `to_automaton_regex`, for a bound that is
            exceeded, and for ignored case.
    """
    return _Parser(pattern, limits, both_cases).run()


class _Parser:
    def __init__(self, pattern: str, limits: Limits, both_cases: bool) -> None:
        self._pattern = pattern
        self._text = to_automaton_regex(pattern)
        check_repeats("regex", self._text, limits)
        self._most_groups = limits.depth
        self._at = 0
        self._dots = [_NO_NEWLINE]
        self._both_cases = both_cases
        self._cases = [False]  # is case ignored, by group

    def run(self) -> Node:
        node = self._alternatives()
        assert self._at == len(self._text), "the rewritten pattern has an unmatched group end"
        return node

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _until(self, end: str) -> str:
        """Text up to `end`, which is passed."""
        start, self._at = self._at, self._text.index(end, self._at) + 1
        return self._text[start : self._at - 1]

    def _alternatives(self) -> Node:
        parts = [self._sequence()]
        while self._peek() == "|":
            self._at += 1
            parts.append(self._sequence())
        return parts[0] if len(parts) == 1 else Alt(tuple(parts))

    def _sequence(self) -> Node:
        parts: list[Node] = []
        while self._peek() not in ("", "|", ")"):
            node = self._repeated(self._item())
            if isinstance(node, Text) and parts and isinstance(parts[-1], Text):
                node = Text(parts.pop().value + node.value)  # type: ignore[union-attr]
            parts.append(node)
        return parts[0] if len(parts) == 1 else Seq(tuple(parts))

    def _repeated(self, node: Node) -> Node:
        char = self._peek()
        if char in ("*", "+", "?"):
            self._at += 1
            return Repeat(node, int(char == "+"), 1 if char == "?" else None)
        if char == "{":
            self._at += 1
            low, _, high = self._until("}").partition(",")
            return Repeat(node, int(low), int(high) if high else None)
        return node

    def _item(self) -> Node:
        char = self._peek()
        self._at += 1
        if char == "(":
            return self._group()
        if char == ".":
            return Chars(self._dots[-1])
        if char == "[":
            return Chars(self._class())
        if char == "\\":
            self._at += 2  # x{
            char = chr(int(self._until("}"), 16))
        if self._cases[-1]:
            return Chars(with_cases(((ord(char), ord(char)),)))
        return Text(char)

    def _group(self) -> Node:
        self._at += 1  # ?
        on, _, off = self._until(":").partition("-")
        if "i" in on and not self._both_cases:
            raise UnsupportedConstraint(
                "regex: flag 'i' cannot be enforced by this backend",
                value=self._pattern,
                hint="Write both cases.",
            )
        dot = ANY if "s" in on else _NO_NEWLINE if "s" in off else self._dots[-1]
        self._dots.append(dot)
        self._cases.append("i" in on or ("i" not in off and self._cases[-1]))
        if len(self._dots) > self._most_groups + 1:
            found = f"more than {self._most_groups} levels"
            raise exceeded("regex", "depth", "groups", found, self._most_groups)
        node = self._alternatives()
        self._dots.pop()
        self._cases.pop()
        self._at += 1  # )
        return node

    def _class(self) -> Ranges:
        """Items up to the closing bracket; a class may hold classes."""
        negated = self._peek() == "^"
        self._at += negated
        found: list[tuple[int, int]] = []
        while self._peek() != "]":
            if self._peek() == "[":
                self._at += 1
                found += self._class()
            elif self._text.startswith(("\\p{", "\\P{"), self._at):
                inverse = self._text[self._at + 1] == "P"
                self._at += 3
                ranges = category(self._until("}"))
                found += all_but(ranges) if inverse else ranges
            else:
                low = high = self._class_char()
                if self._peek() == "-":
                    self._at += 1
                    high = self._class_char()
                found.append((low, high))
        self._at += 1
        inside = tuple(found)
        outside = all_but(with_cases(inside) if self._cases[-1] else inside)
        return outside if negated else all_but(outside)

    def _class_char(self) -> int:
        if self._peek() == "\\":
            self._at += 3  # \x{
            return int(self._until("}"), 16)
        self._at += 1
        return ord(self._text[self._at - 1])


def with_cases(ranges: Ranges) -> Ranges:
    """Those characters and their other cases."""
    alike = _cases()
    extra = [
        (other, other)
        for code, others in alike.items()
        if any(low <= code <= high for low, high in ranges)
        for other in others
    ]
    return all_but(all_but((*ranges, *extra)))


@functools.cache
def _cases() -> dict[int, tuple[int, ...]]:
    """Characters that differ in case only, of those that have cases."""
    groups: dict[str, list[int]] = {}
    for code in range(0x110000):
        char = chr(code)
        lower, folded = char.lower(), char.casefold()
        groups.setdefault(folded if len(folded) == 1 else lower, []).append(code)
    return {code: tuple(group) for group in groups.values() if len(group) > 1 for code in group}


@functools.lru_cache(maxsize=16)
def category(name: str) -> Ranges:
    """Characters whose Unicode category begins with `name`, such as "L" or "Nd"."""
    codes = (code for code in range(0x110000) if unicodedata.category(chr(code)).startswith(name))
    ranges: list[tuple[int, int]] = []
    for _, run in itertools.groupby(enumerate(codes), key=lambda pair: pair[1] - pair[0]):
        block = [code for _, code in run]
        ranges.append((block[0], block[-1]))
    return tuple(ranges)
