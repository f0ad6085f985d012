"""The syntax of ECMA-262 patterns, as a tree.

Invariant: what parses means the same as in ECMA-262 with the flag `u`; whatever would not, and what
no automaton can do (lookbehind, backreferences), is refused by name.

Read beyond it, since schemas are written for many engines: `\\A`, `\\Z`, `\\z`, `(?P<name>…)`,
`(?i)` and `(?s)` at the start.
"""

from __future__ import annotations

import unicodedata
from functools import cache, lru_cache
from itertools import groupby
from typing import NamedTuple

from branchline.runtime.patterns.ranges import (
    EVERY,
    Ranges,
    intersect_ranges,
    invert_ranges,
    ranges_of,
)

DIGIT: Ranges = ((0x30, 0x39),)
WORD: Ranges = ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
SPACE: Ranges = ranges_of(
    (ord(c), ord(c))
    for c in "\t\n\v\f\r \u00a0\u1680\u2028\u2029\u202f\u205f\u3000\ufeff"
    + "".join(map(chr, range(0x2000, 0x200B)))
)
_LINE_ENDS: Ranges = ((0xA, 0xA), (0xD, 0xD), (0x2028, 0x2029))
_CONTROLS = {"t": "\t", "n": "\n", "v": "\v", "f": "\f", "r": "\r"}
_MOST_REPEAT = 100_000
_MOST_GROUPS = 100
_BLOCK = 4096


class PatternError(Exception):
    """Why a pattern cannot be translated."""


class Part(NamedTuple):
    """A piece of syntax.

    `kind` is one of set, seq, or, rep, start, end, edge (word boundary), look.
    """

    kind: str
    parts: tuple[Part, ...] = ()
    ranges: Ranges = ()
    least: int = 0
    most: int | None = None
    negated: bool = False

    @property
    def plain(self) -> bool:
        """Whether it holds no assertion."""
        return self.kind in ("set", "seq", "or", "rep") and all(p.plain for p in self.parts)


@lru_cache(maxsize=256)
def parse(pattern: str) -> Part:
    """The tree of a pattern; those of formats come again in every schema."""
    return _Parser(pattern).run()


class _Parser:
    """Recursive descent over the pattern."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._depth = 0
        self._ignore_case = False
        self._dot_all = False

    def run(self) -> Part:
        """The tree of the whole pattern."""
        if self._take("(?"):
            flags = self._text[self._at : self._text.find(")", self._at)]
            if flags and set(flags) <= set("ismu") and "m" not in flags:
                self._ignore_case, self._dot_all = "i" in flags, "s" in flags
                self._at += len(flags) + 1
            else:
                self._at = 0
        tree = self._either()
        if self._at < len(self._text):
            raise PatternError(f"a group is closed at {self._at} that was not opened")
        return tree

    def _take(self, text: str) -> bool:
        if self._text.startswith(text, self._at):
            self._at += len(text)
            return True
        return False

    def _either(self) -> Part:
        options = [self._sequence()]
        while self._take("|"):
            options.append(self._sequence())
        return options[0] if len(options) == 1 else Part("or", tuple(options))

    def _sequence(self) -> Part:
        parts = []
        while self._at < len(self._text) and self._text[self._at] not in "|)":
            parts.append(self._quantified(self._atom()))
        return Part("seq", tuple(parts))

    def _quantified(self, part: Part) -> Part:
        bounds: tuple[int, int | None] | None = None
        if self._take("*"):
            bounds = (0, None)
        elif self._take("+"):
            bounds = (1, None)
        elif self._take("?"):
            bounds = (0, 1)
        else:
            bounds = self._braces()
        if bounds is None:
            return part
        if part.kind in ("start", "end", "edge"):
            raise PatternError("an assertion is repeated")
        if self._at < len(self._text) and self._text[self._at] in "*+":
            raise PatternError(f"a repetition of a repetition at {self._at}")
        self._take("?")  # a lazy repetition finds the same texts
        least, most = bounds
        if max(least, most or 0) > _MOST_REPEAT:
            raise PatternError(f"a repetition of more than {_MOST_REPEAT} times")
        if most is not None and most < least:
            raise PatternError("a repetition whose least is above its most")
        return Part("rep", (part,), least=least, most=most)

    def _braces(self) -> tuple[int, int | None] | None:
        end = self._text.find("}", self._at)
        if not self._text.startswith("{", self._at) or end < 0:
            return None
        low, comma, high = self._text[self._at + 1 : end].partition(",")
        if not _digits(low) or (high and not _digits(high)) or len(low) > 9 or len(high) > 9:
            return None
        self._at = end + 1
        return int(low), int(high) if high else None if comma else int(low)

    def _atom(self) -> Part:
        char = self._text[self._at]
        self._at += 1
        match char:
            case "(":
                return self._group()
            case "[":
                return self._set(self._class())
            case ".":
                return self._set(EVERY if self._dot_all else invert_ranges(_LINE_ENDS))
            case "^":
                return Part("start")
            case "$":
                return Part("end")
            case "\\":
                return self._escape()
            case "*" | "+" | "?":
                raise PatternError(f"nothing to repeat at {self._at - 1}")
        return self._set(_one(char))

    def _set(self, ranges: Ranges) -> Part:
        return Part("set", ranges=_any_case(ranges) if self._ignore_case else ranges)

    def _group(self) -> Part:
        self._depth += 1
        if self._depth > _MOST_GROUPS:
            raise PatternError(f"more than {_MOST_GROUPS} groups within each other")
        look, negated = False, False
        if self._take("?="):
            look = True
        elif self._take("?!"):
            look = negated = True
        elif self._take("?<=") or self._take("?<!"):
            raise PatternError("lookbehind")
        elif self._take("?<") or self._take("?P<"):
            self._at = self._text.find(">", self._at) + 1
            if self._at == 0:
                raise PatternError("a group has no valid name")
        elif not self._take("?:") and self._text.startswith("?", self._at):
            raise PatternError(f"a group of the kind {self._text[self._at : self._at + 2]!r}")
        inside = self._either()
        if not self._take(")"):
            raise PatternError("a group is not closed")
        self._depth -= 1
        return Part("look", (inside,), negated=negated) if look else inside

    def _escape(self) -> Part:
        name = self._text[self._at : self._at + 1]
        if name in ("b", "B"):
            self._at += 1
            return Part("edge", negated=name == "B")
        if name in ("A", "Z", "z"):
            self._at += 1
            return Part("start" if name == "A" else "end")
        if name.isdigit() and name != "0":
            raise PatternError(f"the backreference \\{name}")
        if name == "k" and self._text[self._at + 1 : self._at + 2] == "<":
            raise PatternError("a named backreference")
        return self._set(self._escaped_set())

    def _escaped_set(self) -> Ranges:
        """What follows a backslash, inside a class or not."""
        name = self._text[self._at : self._at + 1]
        self._at += 1
        sets = {"d": DIGIT, "w": WORD, "s": SPACE}
        if name.lower() in sets and name:
            ranges = sets[name.lower()]
            return ranges if name.islower() else invert_ranges(ranges)
        if name in ("p", "P"):
            return self._property(name == "P")
        if name in _CONTROLS:
            return _one(_CONTROLS[name])
        if name == "0":
            return _one("\0")
        if name == "c":
            letter = self._text[self._at : self._at + 1]
            if not (letter.isascii() and letter.isalpha()):
                raise PatternError("an incomplete \\c escape")
            self._at += 1
            return _one(chr(ord(letter) & 31))
        if name in ("x", "u"):
            return _one(chr(self._hex(2 if name == "x" else 4)))
        if not name or (name.isascii() and name.isalnum()):
            raise PatternError(f"the unknown escape \\{name}")
        return _one(name)

    def _hex(self, length: int) -> int:
        if length == 4 and self._take("{"):
            end = self._text.find("}", self._at)
            digits = self._text[self._at : max(end, self._at)]
            self._at = end + 1
        else:
            digits = self._text[self._at : self._at + length]
            self._at += length
            if len(digits) != length:
                raise PatternError("an incomplete numeric escape")
        if not digits or len(digits) > 6 or not set(digits) <= set("0123456789abcdefABCDEF"):
            raise PatternError("an incomplete numeric escape")
        value = int(digits, 16)
        if 0xD800 <= value <= 0xDBFF and self._take("\\u"):
            low = self._hex(4)
            if 0xDC00 <= low <= 0xDFFF:
                return 0x10000 + ((value - 0xD800) << 10) + (low - 0xDC00)
            raise PatternError("half a surrogate pair")
        if value > 0x10FFFF or 0xD800 <= value <= 0xDFFF:
            raise PatternError("an escape that is no character")
        return value

    def _property(self, negated: bool) -> Ranges:
        if self._take("{"):
            end = self._text.find("}", self._at)
            name = self._text[self._at : max(end, self._at)]
            self._at = end + 1
        else:
            name = self._text[self._at : self._at + 1]
            self._at += 1
        short = _LONG_CATEGORIES.get(name, name).removeprefix("gc=")
        ranges = ranges_of(
            pair
            for category, pairs in _categories().items()
            if category.startswith(short)
            for pair in pairs
        )
        if not short or not ranges:
            raise PatternError(f"the property \\p{{{name}}}")
        return invert_ranges(ranges) if negated else ranges

    def _class(self) -> Ranges:
        negated = self._take("^")
        pairs: list[tuple[int, int]] = []
        while not self._take("]"):
            low = self._class_item()
            if not self._text.startswith("-", self._at) or self._text.startswith("-]", self._at):
                pairs.extend(low)
                continue
            self._at += 1
            high = self._class_item()
            if not (_single(low) and _single(high)):
                # A class at either end of a dash: the dash is a character.
                pairs.extend((*low, (0x2D, 0x2D), *high))
            elif low[0][0] > high[0][0]:
                raise PatternError("a range of characters that runs backwards")
            else:
                pairs.append((low[0][0], high[0][0]))
        ranges = ranges_of(pairs)
        if self._ignore_case:
            ranges = _any_case(ranges)
        return invert_ranges(ranges) if negated else ranges

    def _class_item(self) -> Ranges:
        if self._at >= len(self._text):
            raise PatternError("a character class is not closed")
        char = self._text[self._at]
        self._at += 1
        if char != "\\":
            return _one(char)
        if self._take("b"):
            return _one("\b")
        if self._take("-"):
            return _one("-")
        return self._escaped_set()


_LONG_CATEGORIES = {
    "Letter": "L",
    "Lowercase_Letter": "Ll",
    "Uppercase_Letter": "Lu",
    "Mark": "M",
    "Number": "N",
    "Decimal_Number": "Nd",
    "Punctuation": "P",
    "Symbol": "S",
    "Separator": "Z",
    "Other": "C",
}


def _one(char: str) -> Ranges:
    if 0xD800 <= ord(char) <= 0xDFFF:
        raise PatternError("half a surrogate pair")
    return ((ord(char), ord(char)),)


def _single(ranges: Ranges) -> bool:
    return len(ranges) == 1 and ranges[0][0] == ranges[0][1]


def _digits(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _any_case(ranges: Ranges) -> Ranges:
    """With the other case of each ASCII letter."""
    lower = intersect_ranges(ranges, ((0x61, 0x7A),))
    upper = intersect_ranges(ranges, ((0x41, 0x5A),))
    shifted: list[tuple[int, int]] = [(low - 32, high - 32) for low, high in lower]
    shifted += [(low + 32, high + 32) for low, high in upper]
    return ranges_of([*ranges, *shifted])


@cache
def _categories() -> dict[str, list[tuple[int, int]]]:
    """Ranges of each general category of Unicode. Found block by block: no step takes long."""
    found: dict[str, list[tuple[int, int]]] = {}
    for block in range(0, 0x110000, _BLOCK):
        at = block
        for name, run in groupby(map(unicodedata.category, map(chr, range(block, block + _BLOCK)))):
            end = at + len(list(run))
            pairs = found.setdefault(name, [])
            if pairs and pairs[-1][1] == at - 1:
                pairs[-1] = (pairs[-1][0], end - 1)
            else:
                pairs.append((at, end - 1))
            at = end
    del found["Cs"]  # half surrogates
    return found
