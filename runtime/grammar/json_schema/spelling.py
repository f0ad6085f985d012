r"""How texts are spelled inside a JSON string. Invariant: every spelling that is allowed for a
character is allowed wherever the character is, so that intersection and complement of languages
are those of their spellings.

A character stands for itself or, outside printable ASCII, as `\uXXXX` (lower case, surrogate
pairs above U+FFFF); quote, backslash and the controls that have a short escape take it. The result
is an expression for a terminal of llguidance's Lark. Knows no schema.
"""

from __future__ import annotations

import functools

from branchline.runtime.grammar.json_schema.languages import Language, Languages
from branchline.runtime.patterns.ranges import Ranges, intersect_ranges

_SHORT = {0x22: '"', 0x5C: "\\", 8: "b", 9: "t", 10: "n", 12: "f", 13: "r"}
_RAW: Ranges = ((0x20, 0x21), (0x23, 0x5B), (0x5D, 0x10FFFF))
_LONG: Ranges = ((0, 7), (0xB, 0xB), (0xE, 0x1F), (0x7F, 0xFFFF))
_LONG_ASCII: Ranges = ((0, 7), (0xB, 0xB), (0xE, 0x1F))
_MOST_ESCAPES = 300
_MOST_SIZE = 400_000
_HEX = "0123456789abcdef"


class TooLarge(Exception):
    """A language whose expression would be longer than is allowed."""


class Speller:
    """Expressions of languages. Keeps what it has written."""

    def __init__(self, languages: Languages) -> None:
        self._languages = languages
        self._quoted: dict[tuple[Language, str], str] = {}

    def quoted(self, language: Language, after: str = "") -> str:
        """Terminal expression for the JSON strings whose value is in `language`.

        Args:
            language: the values.
            after: regex text that follows the closing quote.

        Raises:
            TooLarge: see there.
        """
        key = (language, after)
        found = self._quoted.get(key)
        if found is None:
            found = self._quoted[key] = self._quote(language, after)
        return found

    def word(self, text: str, after: str = "") -> str:
        """What `quoted` gives for the language of one text; names of properties are many."""
        spelled = "".join([_spell(((ord(char), ord(char)),), True) for char in text])
        return _regex(f'"{spelled}"{after}')

    def _quote(self, language: Language, after: str) -> str:
        writer = _Writer(self._languages, escapes=_few_escapes(language))
        if language.plain:
            return _regex('"' + writer.grouped(language) + '"' + after)
        inside = writer.expression(language)
        return f"{_regex(chr(34))} ({inside}) {_regex(chr(34) + after)}"


class _Writer:
    def __init__(self, languages: Languages, *, escapes: bool) -> None:
        self._escapes = escapes
        self._every = languages.every
        self._size = 0

    def _spend(self, text: str) -> str:
        self._size += len(text)
        if self._size > _MOST_SIZE:
            raise TooLarge(f"a text constraint of more than {_MOST_SIZE} characters")
        return text

    def regex(self, node: Language) -> str:
        """Regex of a plain language."""
        match node.op:
            case "empty":
                return ""
            case "none":
                return "[^\\x00-\\x{10ffff}]"
            case "set":
                return self._spend(_spell(node.ranges, self._escapes))
            case "cat":
                pieces = []
                while node.op == "cat":
                    pieces.append(self.grouped(node.parts[0]))
                    node = node.parts[1]
                return "".join([*pieces, self.grouped(node)])
            case "any":
                return "|".join(self.regex(part) for part in node.parts)
        return self._spend(f"(?:{self.regex(node.parts[0])}){_times(node)}")

    def grouped(self, node: Language) -> str:
        text = self.regex(node)
        return f"(?:{text})" if node.op == "any" else text

    def expression(self, node: Language) -> str:
        """Terminal expression of any language; safe inside `&`, `~` and sequences."""
        if node.plain:
            return _regex(self.regex(node))
        match node.op:
            case "cat":
                pieces = []
                while node.op == "cat" and not node.plain:
                    pieces.append(self.expression(node.parts[0]))
                    node = node.parts[1]
                return f"({' '.join([*pieces, self.expression(node)])})"
            case "any":
                return f"({' | '.join(self.expression(part) for part in node.parts)})"
            case "all":
                kept = sorted(node.parts, key=lambda part: part.op == "not")
                positive = [self.expression(part) for part in kept if part.op != "not"]
                negative = [f"~{self.expression(p.parts[0])}" for p in kept if p.op == "not"]
                if not positive:
                    positive = [self.expression(self._every)]
                return f"({' & '.join(positive + negative)})"
            case "not":
                every = self.expression(self._every)
                return f"({every} & ~{self.expression(node.parts[0])})"
        return f"({self.expression(node.parts[0])}){_times(node)}"


def _few_escapes(language: Language) -> bool:
    """Whether every set of the language has a short list of long escapes."""
    seen: set[Language] = set()
    stack = [language]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        stack.extend(node.parts)
        if len(node.ranges) > _MOST_ESCAPES:
            return False
    return True


def _times(node: Language) -> str:
    if node.most is None:
        return {0: "*", 1: "+"}.get(node.least, f"{{{node.least},}}")
    return "?" if (node.least, node.most) == (0, 1) else f"{{{node.least},{node.most}}}"


def _regex(text: str) -> str:
    return f"/{text}/" if text else '""'


@functools.lru_cache(maxsize=1024)
def _spell(ranges: Ranges, escapes: bool) -> str:
    """Regex of one character of a set; schemas have most sets in common."""
    options = []
    raw = intersect_ranges(ranges, _RAW)
    if raw:
        options.append(char_class(raw))
    short = "".join(
        _class_char(ord(letter))
        for code, letter in _SHORT.items()
        if intersect_ranges(ranges, ((code, code),))
    )
    if short:
        options.append(f"\\\\[{short}]")
    units = hex_units(intersect_ranges(ranges, _LONG if escapes else _LONG_ASCII))
    if units:
        options.append(f"\\\\u(?:{'|'.join(units)})")
    if escapes:
        options.extend(_pairs(intersect_ranges(ranges, ((0x10000, 0x10FFFF),))))
    if not options:
        return "[^\\x00-\\x{10ffff}]"
    return options[0] if len(options) == 1 and not units else f"(?:{'|'.join(options)})"


def _pairs(ranges: Ranges) -> list[str]:
    """Surrogate pairs."""
    by_low: dict[tuple[tuple[int, int], ...], list[tuple[int, int]]] = {}
    for low, high in ranges:
        low, high = low - 0x10000, high - 0x10000
        first, last = low >> 10, high >> 10
        rows: list[tuple[int, int, int, int]] = []
        if first == last:
            rows.append((first, first, low & 0x3FF, high & 0x3FF))
        else:
            rows.append((first, first, low & 0x3FF, 0x3FF))
            rows.append((last, last, 0, high & 0x3FF))
            if last - first > 1:
                rows.append((first + 1, last - 1, 0, 0x3FF))
        for top, end, start, stop in rows:
            key = ((0xDC00 + start, 0xDC00 + stop),)
            by_low.setdefault(key, []).append((0xD800 + top, 0xD800 + end))
    return [
        f"\\\\u(?:{'|'.join(hex_units(tuple(sorted(tops))))})\\\\u(?:{'|'.join(hex_units(lows))})"
        for lows, tops in by_low.items()
    ]


def hex_units(ranges: Ranges, width: int = 4) -> list[str]:
    """Regexes of the numbers in `ranges`, as `width` hexadecimal digits."""
    if not ranges:
        return []
    if ranges == ((0, 16**width - 1),):
        return ["[0-9a-f]" * width]
    size = 16 ** (width - 1)
    by_rest: dict[tuple[str, ...], list[int]] = {}
    for digit in range(16):
        part = _within(ranges, digit * size, (digit + 1) * size - 1)
        if part:
            by_rest.setdefault(tuple(hex_units(part, width - 1)), []).append(digit)
    out = []
    for rest, digits in by_rest.items():
        head = _digit_class(digits)
        tail = rest[0] if len(rest) == 1 else f"(?:{'|'.join(rest)})"
        out.append(head + tail)
    return out


def _within(ranges: Ranges, low: int, high: int) -> Ranges:
    return tuple(
        (max(a, low) - low, min(b, high) - low) for a, b in ranges if a <= high and b >= low
    )


def _digit_class(digits: list[int]) -> str:
    if len(digits) == 1:
        return _HEX[digits[0]]
    if len(digits) == 16:
        return "[0-9a-f]"
    return f"[{''.join(_HEX[digit] for digit in digits)}]"


def char_class(ranges: Ranges) -> str:
    """Regex of one character."""
    if len(ranges) == 1 and ranges[0][0] == ranges[0][1]:
        return _class_char(ranges[0][0])
    return "[" + "".join(_pair(low, high) for low, high in ranges) + "]"


def _pair(low: int, high: int) -> str:
    if low == high:
        return _class_char(low)
    return f"{_class_char(low)}-{_class_char(high)}"


def _class_char(code: int) -> str:
    char = chr(code)
    return char if char.isascii() and char.isalnum() else f"\\x{{{code:x}}}"


def literal(text: str) -> str:
    """Regex of one text, character by character."""
    return "".join(_class_char(ord(char)) for char in text)
