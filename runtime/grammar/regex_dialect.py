r"""Python patterns rewritten for automaton engines. Invariant: what the rewritten pattern matches,
Python's `re.fullmatch` matches too.

A pattern constrains a whole output, so `^` and `\A` at its start, `$` and `\Z` at its end (or at
the ends of a top-level alternative) change nothing and are dropped. Where engines read a class
differently the reading is fixed here: `\d` is 0-9 (`\D` is anything that is no digit in any
script), `\w` is `_`, letters and numbers of every script, `\s` is Python's white space, `.` is
anything but a newline. What an automaton cannot do (lookaround, backreferences, possessive and
atomic groups, word boundaries, anchors elsewhere) is refused by name. Knows no engine: the result
uses only groups, alternatives, greedy quantifiers, escapes `\x{…}`, `\p{…}` and classes.
"""

from __future__ import annotations

import unicodedata

from branchline.runtime.errors import InvalidRequest, UnsupportedConstraint

MAX_REPEAT = 100_000

_SHORTHANDS = {
    "d": "0-9",
    "D": r"\P{Nd}",
    "w": r"\p{L}\p{N}_",
    "W": r"[^\p{L}\p{N}_]",
    "s": r"\x{20}\x{9}-\x{d}\x{1c}-\x{1f}\x{85}\p{Z}",
    "S": r"[^\x{20}\x{9}-\x{d}\x{1c}-\x{1f}\x{85}\p{Z}]",
}
_CONTROLS = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v", "a": "\a"}
_HEX_ESCAPES = {"x": 2, "u": 4, "U": 8}
REFUSED_GROUPS = {
    "?=": "lookahead (?=…)",
    "?!": "negative lookahead (?!…)",
    "?<=": "lookbehind (?<=…)",
    "?<!": "negative lookbehind (?<!…)",
    "?>": "atomic group (?>…)",
    "?(": "conditional group (?(…)…)",
    "?P=": "backreference (?P=…)",
}


def to_automaton_regex(pattern: str) -> str:
    """Rewrite a Python pattern.

    Raises:
        InvalidRequest: the pattern is malformed; says where.
        UnsupportedConstraint: it uses what an automaton cannot do; names it.
    """
    return _Rewriter(pattern).run()


def literal(text: str) -> str:
    """A pattern that matches `text` and nothing else."""
    return "".join(map(_char, text))


def _char(char: str) -> str:
    if 0xD800 <= ord(char) <= 0xDFFF:
        raise InvalidRequest(
            "a constraint holds half a surrogate pair, which no UTF-8 text can hold",
            value=f"U+{ord(char):04X}",
            hint="Use whole characters.",
        )
    return char if char.isascii() and char.isalnum() else f"\\x{{{ord(char):x}}}"


class _Rewriter:
    """One pass over a pattern, with a cursor."""

    def __init__(self, pattern: str) -> None:
        self._text = pattern
        self._at = 0
        self._out: list[str] = []
        self._opened: list[int] = []
        self._tail = ""
        # Of the current top-level alternative: only anchors so far; an end anchor has been read.
        self._fresh = True
        self._ended = False
        self._quantifiable = False

    def run(self) -> str:
        """The whole pattern, rewritten."""
        self._global_flags()
        while self._at < len(self._text):
            char = self._text[self._at]
            if self._ended and char not in "|$" and not self._looking_at("\\Z"):
                raise self._unsupported("an end anchor before other characters")
            if char in "*+?" or (char == "{" and self._repeat_bounds() is not None):
                self._quantifier(char)
            elif char == "(":
                self._open_group()
            elif char in "|)":
                self._end_alternative(char)
            elif char in "^$":
                self._at += 1
                self._anchor(char)
            else:
                self._atom(char)
        if self._opened:
            raise self._malformed("a group is not closed", at=self._opened[-1])
        return f"(?:{''.join(self._out)}{self._tail})"

    def _looking_at(self, text: str) -> bool:
        return self._text.startswith(text, self._at)

    def _malformed(self, message: str, at: int | None = None) -> InvalidRequest:
        place = self._at if at is None else at
        return InvalidRequest(
            f"regex: {message} at position {place}",
            value=self._text,
            hint="Write the pattern as Python's re.fullmatch reads it.",
        )

    def _unsupported(self, what: str) -> UnsupportedConstraint:
        return UnsupportedConstraint(
            f"regex: {what} at position {self._at} cannot be enforced",
            value=self._text,
            hint="The pattern must describe the whole output with groups, alternatives, classes "
            "and repetitions only.",
        )

    def _global_flags(self) -> None:
        if self._text.startswith("(?") and self._text[2:3].isalpha():
            end = self._text.find(")")
            flags = self._text[2 : max(end, 2)]
            if end > 0 and flags.isalpha() and not flags.startswith("P"):
                self._check_flags(flags)
                self._at = end + 1
                self._out.append(f"(?{flags}:")
                self._tail = ")"

    def _check_flags(self, flags: str) -> None:
        for flag in flags.replace("-", "", 1):
            if flag not in "is":
                raise self._unsupported(f"flag {flag!r} (only i and s)")

    def _anchor(self, name: str) -> None:
        self._quantifiable = False
        if name in ("$", "Z") and not self._opened:
            self._ended = True
        elif name in ("$", "Z"):
            raise self._unsupported("an end anchor inside a group")
        elif self._opened or not self._fresh:
            raise self._unsupported("a start anchor after other characters")

    def _placed(self) -> None:
        self._quantifiable = True
        self._fresh = False

    def _open_group(self) -> None:
        rest = self._text[self._at + 1 : self._at + 4]
        for mark, what in REFUSED_GROUPS.items():
            if rest.startswith(mark):
                raise self._unsupported(what)
        start, kind = self._at, "(?:"
        if rest.startswith("?P<"):
            end = self._text.find(">", self._at)
            if end < 0 or not self._text[self._at + 4 : end].isidentifier():
                raise self._malformed("a group has no valid name")
            self._at = end + 1
        elif rest.startswith("?#"):
            end = self._text.find(")", self._at)
            if end < 0:
                raise self._malformed("a comment is not closed")
            self._at = end + 1
            return
        elif rest.startswith("?"):
            end = self._text.find(":", self._at)
            flags = self._text[self._at + 2 : end]
            if end < 0 or not _flag_letters(flags):
                raise self._malformed("a group of an unknown kind")
            self._check_flags(flags)
            kind = f"(?{flags}:"
            self._at = end + 1
        else:
            self._at += 1
        self._opened.append(start)
        self._out.append(kind)
        self._quantifiable = self._fresh = False

    def _end_alternative(self, char: str) -> None:
        self._at += 1
        if char == ")":
            if not self._opened:
                raise self._malformed("a group is closed that was not opened", at=self._at - 1)
            self._opened.pop()
            self._placed()
        else:
            self._quantifiable = False
            if not self._opened:
                self._fresh, self._ended = True, False
        self._out.append(char)

    def _repeat_bounds(self) -> tuple[int, int | None, int] | None:
        """(least, most, characters) of a `{…}` quantifier; None where `{` is a plain character."""
        end = self._text.find("}", self._at)
        low, comma, high = self._text[self._at + 1 : max(end, self._at)].partition(",")
        if end < 0 or not (low or comma) or not all(_decimal(x) or not x for x in (low, high)):
            return None
        if not low and not high:
            return None if not comma else (0, None, end + 1 - self._at)
        least = int(low or "0")
        most = least if not comma else (int(high) if high else None)
        return least, most, end + 1 - self._at

    def _quantifier(self, char: str) -> None:
        if not self._quantifiable:
            raise self._malformed("nothing to repeat")
        self._quantifiable = False
        bounds = self._repeat_bounds() if char == "{" else None
        if bounds is None:
            self._out.append(char)
            self._at += 1
        else:
            least, most, length = bounds
            if max(least, most or 0) > MAX_REPEAT:
                raise self._unsupported(f"a repetition of more than {MAX_REPEAT} times")
            if most is not None and most < least:
                raise self._malformed("a repetition whose least is above its most")
            self._out.append(f"{{{least},{'' if most is None else most}}}")
            self._at += length
        if self._looking_at("+"):
            raise self._unsupported("possessive repetition")
        # A lazy repetition matches the same whole texts.
        self._at += self._looking_at("?")

    def _atom(self, char: str) -> None:
        if char == "[":
            self._out.append(self._set())
        elif char == ".":
            self._at += 1
            self._out.append(".")
        elif char != "\\":
            self._at += 1
            self._out.append(_char(char))
        elif self._text[self._at + 1 : self._at + 2] in ("A", "Z"):
            self._at += 2
            self._anchor(self._text[self._at - 1])
            return
        else:
            value = self._escape(in_set=False)
            self._out.append(_char(value) if len(value) == 1 else f"[{value[1:]}]")
        self._placed()

    def _escape(self, *, in_set: bool) -> str:
        """One character, or "\\" followed by the inside of a class."""
        name = self._text[self._at + 1 : self._at + 2]
        if not name:
            raise self._malformed("a backslash at the end")
        if name in _SHORTHANDS:
            self._at += 2
            return "\\" + _SHORTHANDS[name]
        if name in _HEX_ESCAPES:
            return self._code_point(2, _HEX_ESCAPES[name], 16)
        if name in "01234567":
            octal = self._text[self._at + 1 : self._at + 4]
            if name == "0" or (len(octal) == 3 and all(c in "01234567" for c in octal)):
                length = len(octal) - len(octal.lstrip("01234567"))
                return self._code_point(1, length, 8)
        if name.isdigit() and not in_set:
            raise self._unsupported(f"backreference \\{name}")
        if name == "N":
            return self._named()
        if name in "bB" and not (in_set and name == "b"):
            raise self._unsupported(f"word boundary \\{name}")
        if name == "b":
            self._at += 2
            return "\b"
        if name in _CONTROLS or not (name.isascii() and name.isalnum()):
            self._at += 2
            return _CONTROLS.get(name, name)
        raise self._malformed(f"unknown escape \\{name}")

    def _code_point(self, skip: int, length: int, base: int) -> str:
        digits = self._text[self._at + skip : self._at + skip + length]
        allowed = "0123456789abcdefABCDEF" if base == 16 else "01234567"
        if len(digits) != length or any(c not in allowed for c in digits):
            raise self._malformed("an incomplete numeric escape")
        if int(digits, base) > 0x10FFFF:
            raise self._malformed("an escape beyond the last character")
        self._at += skip + length
        return chr(int(digits, base))

    def _named(self) -> str:
        end = self._text.find("}", self._at)
        if not self._looking_at("\\N{") or end < 0:
            raise self._malformed("an incomplete \\N{…} escape")
        try:
            char = unicodedata.lookup(self._text[self._at + 3 : end])
        except KeyError:
            raise self._malformed("a character name that does not exist") from None
        if len(char) != 1:
            raise self._malformed("a name of several characters")
        self._at = end + 1
        return char

    def _set(self) -> str:
        start = self._at
        self._at += 1
        parts = ["["]
        if self._looking_at("^"):
            self._at += 1
            parts.append("^")
        first = True
        while first or not self._looking_at("]"):
            low = self._set_item(start)
            first = False
            is_range = self._looking_at("-") and self._text[self._at + 1 : self._at + 2] != "]"
            if not is_range:
                parts.append(_char(low) if len(low) == 1 else low[1:])
                continue
            self._at += 1
            high = self._set_item(start)
            if len(low) > 1 or len(high) > 1 or low > high:
                raise self._malformed("a bad character range")
            parts.append(f"\\x{{{ord(low):x}}}-\\x{{{ord(high):x}}}")
        self._at += 1
        return "".join(parts) + "]"

    def _set_item(self, start: int) -> str:
        if self._at >= len(self._text):
            raise self._malformed("a character class is not closed", at=start)
        char = self._text[self._at]
        if char == "\\":
            return self._escape(in_set=True)
        self._at += 1
        return char


def _decimal(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _flag_letters(flags: str) -> bool:
    on, dash, off = flags.partition("-")
    return (not on or on.isalpha()) and (off.isalpha() if dash else True)
