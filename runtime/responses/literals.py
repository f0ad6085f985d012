"""Matching the fixed texts of a format, one character at a time.

Invariant: where a text has white space, any run of it matches, also none; nothing else is lenient.
A match ends with the last character that is not white space, so that it never waits for more.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Generic, TypeVar

Key = TypeVar("Key")
_SPACE = " \t\r\n"
_ANY_SPACE = ""


class Alternatives(Generic[Key]):
    """Which of some texts comes. None of them may be the beginning of another.

    Args:
        texts: by what they stand for; at least one.
    """

    __slots__ = ("_live",)

    def __init__(self, texts: Mapping[Key, str]) -> None:
        self._live = [(key, compiled(text), 0) for key, text in texts.items()]

    def at_once(self) -> Key | None:
        """The text that takes no characters at all, if one does."""
        return next((key for key, pattern, _ in self._live if not pattern), None)

    def step(self, char: str) -> Key | None:
        """Take a character; what has matched, if something has now. See `dead`."""
        left: list[tuple[Key, Sequence[str], int]] = []
        for key, pattern, at in self._live:
            if pattern[at] is _ANY_SPACE:
                if char in _SPACE:
                    left.append((key, pattern, at))
                    continue
                at += 1
            if pattern[at] == char:
                if at + 1 == len(pattern):
                    self._live = []
                    return key
                left.append((key, pattern, at + 1))
        self._live = left
        return None

    @property
    def dead(self) -> bool:
        """Nothing can match any more."""
        return not self._live


def compiled(text: str) -> Sequence[str]:
    """Characters to match; `_ANY_SPACE` for white space, but none at the end."""
    chunks = [chunk for chunk in re.split(r"(\s+)", text.rstrip(_SPACE)) if chunk]
    pattern: list[str] = []
    for chunk in chunks:
        pattern += [_ANY_SPACE] if chunk.isspace() else list(chunk)
    return pattern
