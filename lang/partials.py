"""The finished parts of a JSON text that still grows: every member and item, as soon as it ends.

Invariant: what is reported does not depend on how the text is cut into pieces; a part comes before
what it is part of. Reads text that a grammar allowed, so it checks nothing itself.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from branchline.lang.json_types import ANY, JsonType

_SPACE = frozenset(" \t\r\n")


class Part(NamedTuple):
    """A finished part.

    Attributes:
        path: from the whole value: `.name`, `[0]`, `["any key"]`, one after the other.
        value: the instance.
    """

    path: str
    value: Any


class _Open:
    """A list or object that has begun."""

    __slots__ = ("begin", "index", "is_list", "key", "kind", "path")

    def __init__(self, kind: JsonType, path: str, begin: int, *, is_list: bool) -> None:
        self.kind = kind
        self.path = path
        self.begin = begin
        self.is_list = is_list
        self.index = 0
        self.key: str | None = None  # None = a key comes next


class Watch:
    """Follows one text. `kind`: the type of the whole."""

    def __init__(self, kind: JsonType) -> None:
        self._kind = kind
        self._text = ""
        self._open: list[_Open] = []
        self._begin = -1  # of the scalar being read
        self._in_string = False
        self._escaped = False
        self._parts: list[Part] = []

    @property
    def seen(self) -> int:
        """Characters so far."""
        return len(self._text)

    def feed(self, piece: str) -> list[Part]:
        """Take more text; the parts that it finished, in order."""
        at = len(self._text)
        self._text += piece
        for offset, char in enumerate(piece, at):
            self._take(char, offset)
        parts, self._parts = self._parts, []
        return parts

    def _take(self, char: str, at: int) -> None:
        if self._in_string:
            if self._escaped:
                self._escaped = False
            elif char == "\\":
                self._escaped = True
            elif char == '"':
                self._in_string = False
                self._end_string(at + 1)
            return
        if self._begin >= 0:  # a number or a word goes on
            if char not in _SPACE and char not in ",]}":
                return
            self._finish(*self._place(), self._begin, at)
            self._begin = -1
        if char in "{[":
            self._open.append(_Open(*self._place(), at, is_list=char == "["))
        elif char in "}]" and self._open:
            ended = self._open.pop()
            self._finish(ended.kind, ended.path, ended.begin, at + 1)
        elif char == "," and self._open:
            self._open[-1].index += 1
            self._open[-1].key = None
        elif char not in _SPACE and char not in ",:":
            self._begin = at
            self._in_string = char == '"'

    def _end_string(self, end: int) -> None:
        begin, self._begin = self._begin, -1
        inside = self._open[-1] if self._open else None
        if inside is not None and not inside.is_list and inside.key is None:
            inside.key = json.loads(self._text[begin:end])
        else:
            self._finish(*self._place(), begin, end)

    def _place(self) -> tuple[JsonType, str]:
        """Type and path of the value that stands here."""
        if not self._open:
            return self._kind, ""
        inside = self._open[-1]
        if inside.is_list:
            return inside.kind.child(inside.index) or ANY, f"{inside.path}[{inside.index}]"
        key = inside.key or ""
        step = f".{key}" if key.isidentifier() else f"[{json.dumps(key)}]"
        return inside.kind.child(key) or ANY, inside.path + step

    def _finish(self, kind: JsonType, path: str, begin: int, end: int) -> None:
        if not path:
            return
        try:
            value = kind.decode(json.loads(self._text[begin:end]))
        except (ValueError, RecursionError):
            return  # the error belongs to the whole value, which is read at its end
        self._parts.append(Part(path, value))
