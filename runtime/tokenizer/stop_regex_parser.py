"""Parses the regular expressions of `stop_regex` into a small tree.

Invariant: whatever parses means the same as in Python's `re`; whatever would not is refused by
name. Parsing is linear in the pattern and its depth is bounded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from branchline.runtime.errors import InvalidRequest

MAX_PATTERN_CHARS = 1000
MAX_DEPTH = 30
MAX_REPEAT = 1000

_CONTROLS = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v", "a": "\a", "0": "\0"}
_HEX_DIGITS = {"x": 2, "u": 4, "U": 8}


def _is_word(char: str) -> bool:
    return char.isalnum() or char == "_"


_CLASSES: dict[str, tuple[Callable[[str], bool], bool]] = {
    "d": (str.isdecimal, True),
    "D": (str.isdecimal, False),
    "w": (_is_word, True),
    "W": (_is_word, False),
    "s": (str.isspace, True),
    "S": (str.isspace, False),
}
_REFUSED_ESCAPES = {"b": "\\b", "B": "\\B", "Z": "\\Z", "z": "\\z", "G": "\\G"}


@dataclass(frozen=True, slots=True)
class CharSet:
    """One character out of a set.

    Attributes:
        ranges: pairs of code points, both included.
        tests: (predicate, wanted answer).
        negated: the set is everything else.
        ignore_case: a character counts if its lower or upper form does.
    """

    ranges: tuple[tuple[int, int], ...] = ()
    tests: tuple[tuple[Callable[[str], bool], bool], ...] = ()
    negated: bool = False
    ignore_case: bool = False

    def matches(self, char: str) -> bool:
        """Whether `char` is in the set."""
        found = self._has(char)
        if self.ignore_case and not found:
            found = any(len(c) == 1 and self._has(c) for c in (char.lower(), char.upper()))
        return found is not self.negated

    def _has(self, char: str) -> bool:
        code = ord(char)
        for low, high in self.ranges:
            if low <= code <= high:
                return True
        return any(test(char) is wanted for test, wanted in self.tests)


@dataclass(frozen=True, slots=True)
class StartAnchor:
    """Holds before the first character of the text."""


@dataclass(frozen=True, slots=True)
class Concatenation:
    """All parts in order; none is the empty text."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Alternation:
    """One of the parts."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """`inner` from `least` to `most` times; None is without end."""

    inner: Node
    least: int
    most: int | None


Node = CharSet | StartAnchor | Concatenation | Alternation | Repeat


def parse(pattern: str) -> Node:
    """The tree of `pattern`.

    Raises:
        InvalidRequest: says what is wrong, and at which character.
    """
    if len(pattern) > MAX_PATTERN_CHARS:
        raise InvalidRequest(
            f"stop_regex is longer than {MAX_PATTERN_CHARS} characters.", value=len(pattern)
        )
    return _Parser(pattern).whole()


class _Parser:
    def __init__(self, pattern: str) -> None:
        self._text = pattern
        self._at = 0
        self._depth = 0
        self._ignore_case = False
        self._dot_all = False

    def whole(self) -> Node:
        while self._text.startswith("(?", self._at) and self._flags():
            pass
        node = self._alternation()
        if self._at < len(self._text):
            raise self._error("a ')' without its '('")
        return node

    def _flags(self) -> bool:
        end = self._text.find(")", self._at)
        letters = self._text[self._at + 2 : end] if end > 0 else ""
        if not letters or set(letters) - set("is"):
            return False
        self._ignore_case |= "i" in letters
        self._dot_all |= "s" in letters
        self._at = end + 1
        return True

    def _alternation(self) -> Node:
        parts = [self._concatenation()]
        while self._peek() == "|":
            self._at += 1
            parts.append(self._concatenation())
        return parts[0] if len(parts) == 1 else Alternation(tuple(parts))

    def _concatenation(self) -> Node:
        parts: list[Node] = []
        while self._peek() not in ("", "|", ")"):
            parts.append(self._quantified())
        return parts[0] if len(parts) == 1 else Concatenation(tuple(parts))

    def _quantified(self) -> Node:
        anchor = self._peek() == "^" or self._text.startswith("\\A", self._at)
        node = self._atom()
        counts = self._counts()
        if counts is None:
            return node
        if anchor:
            raise self._error("a repeated anchor")
        if self._peek() == "?":
            self._at += 1
        elif self._peek() == "+":
            raise self._error("a possessive repetition, which is not supported")
        if self._peek() in ("*", "+", "?") or self._braces() is not None:
            raise self._error("a repetition of a repetition")
        return Repeat(node, *counts)

    def _counts(self) -> tuple[int, int | None] | None:
        char = self._peek()
        if char in ("*", "+", "?") and char:
            self._at += 1
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[char]
        found = self._braces()
        if found is None:
            return None
        least, most, self._at = found
        if max(least, most or 0) > MAX_REPEAT:
            raise self._error(f"a repetition of more than {MAX_REPEAT}")
        if most is not None and most < least:
            raise self._error("a repetition whose upper bound is below the lower one")
        return least, most

    def _braces(self) -> tuple[int, int | None, int] | None:
        """(least, most, position behind), or None if no repetition in braces stands here."""
        end = self._text.find("}", self._at)
        if self._peek() != "{" or end < 0:
            return None
        low, comma, high = self._text[self._at + 1 : end].partition(",")
        for digits in (low, high):
            if (digits and not (digits.isascii() and digits.isdigit())) or len(digits) > 9:
                return None
        if not low and not comma:
            return None
        most = int(high) if high else None
        return int(low or 0), most if comma else int(low), end + 1

    def _atom(self) -> Node:
        char = self._text[self._at]
        if char == "(":
            return self._group()
        if char == "[":
            return self._class()
        if char == "\\":
            return self._escape()
        if char in "*+?" or self._braces() is not None:
            raise self._error("nothing to repeat")
        self._at += 1
        if char == "^":
            return StartAnchor()
        if char == "$":
            raise self._error("'$', which depends on text that is not generated yet", back=1)
        if char == ".":
            return CharSet((), (), True) if self._dot_all else CharSet(((10, 10),), (), True)
        return self._literal(char)

    def _group(self) -> Node:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._error(f"groups more than {MAX_DEPTH} deep")
        self._at += 1
        if self._peek() == "?":
            self._group_head()
        inner = self._alternation()
        if self._peek() != ")":
            raise self._error("a '(' without its ')'")
        self._at += 1
        self._depth -= 1
        # A group is a part of its own, so that `(^)*` or `(a|b){2}` repeat all of it.
        return Concatenation((inner,))

    def _group_head(self) -> None:
        if self._text.startswith("?:", self._at):
            self._at += 2
            return
        end = self._text.find(">", self._at)
        if self._text.startswith("?P<", self._at) and end > 0:
            name = self._text[self._at + 3 : end]
            if name.isidentifier():
                self._at = end + 1
                return
        raise self._error("a group that is not (...), (?:...) or (?P<name>...)")

    def _class(self) -> Node:
        self._at += 1
        negated = self._peek() == "^"
        self._at += negated
        ranges: list[tuple[int, int]] = []
        tests: list[tuple[Callable[[str], bool], bool]] = []
        first = True
        while first or self._peek() != "]":
            first = False
            low = self._class_item()
            if isinstance(low, tuple):
                tests.append(low)
                continue
            if self._peek() == "-" and self._peek(1) not in ("]", ""):
                self._at += 1
                high = self._class_item()
                if isinstance(high, tuple) or high < low:
                    raise self._error("a range with no order in a class")
                ranges.append((low, high))
            else:
                ranges.append((low, low))
        self._at += 1
        return CharSet(tuple(ranges), tuple(tests), negated, self._ignore_case)

    def _class_item(self) -> int | tuple[Callable[[str], bool], bool]:
        char = self._peek()
        if not char:
            raise self._error("a '[' without its ']'")
        if char != "\\":
            self._at += 1
            return ord(char)
        name = self._peek(1)
        if name in _CLASSES and name:
            self._at += 2
            return _CLASSES[name]
        if name == "b":
            self._at += 2
            return 8
        return ord(self._escaped_char())

    def _escape(self) -> Node:
        name = self._peek(1)
        if name == "A":
            self._at += 2
            return StartAnchor()
        if name in _CLASSES and name:
            self._at += 2
            return CharSet((), (_CLASSES[name],))
        if name in _REFUSED_ESCAPES and name:
            what = _REFUSED_ESCAPES[name]
            raise self._error(f"'{what}', which depends on text that is not generated yet")
        if name.isdigit() and name != "0":
            raise self._error("a back-reference, which takes more than linear time")
        return self._literal(self._escaped_char())

    def _escaped_char(self) -> str:
        """The one character an escape stands for; moves behind it."""
        name = self._peek(1)
        if name in _HEX_DIGITS and name:
            width = _HEX_DIGITS[name]
            digits = self._text[self._at + 2 : self._at + 2 + width]
            if len(digits) != width or set(digits.lower()) - set("0123456789abcdef"):
                raise self._error(f"an escape \\{name} without {width} hexadecimal digits")
            code = int(digits, 16)
            if code > 0x10FFFF:
                raise self._error("a character number beyond Unicode")
            self._at += 2 + width
            return chr(code)
        if name == "0" and self._peek(2).isdigit():
            raise self._error("an octal escape, which is not supported")
        if not name or (name.isascii() and name.isalnum() and name not in _CONTROLS):
            raise self._error(f"the unknown escape '\\{name}'")
        self._at += 2
        return _CONTROLS.get(name, name)

    def _literal(self, char: str) -> CharSet:
        one = CharSet(((ord(char), ord(char)),))
        return replace(one, ignore_case=True) if self._ignore_case else one

    def _peek(self, ahead: int = 0) -> str:
        return self._text[self._at + ahead : self._at + ahead + 1]

    def _error(self, found: str, back: int = 0) -> InvalidRequest:
        return InvalidRequest(
            f"stop_regex has {found} (at character {self._at - back}).",
            value=self._text,
            hint="Use literals, classes, groups, alternatives and repetitions.",
        )
