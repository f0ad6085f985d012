"""A section of free text that an output begins with: what a model thinks before it answers.

Invariant: where the section ends does not depend on how the text was split into pieces. Knows
neither models nor grammars.
"""

from __future__ import annotations

import msgspec


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """Free text up to and including `end`, then `gap`; constraint and stop rules hold behind it.

    Attributes:
        end: what ends it.
        gap: what stands between it and the answer; under a constraint it is written there.
        gap_ids: ids of `gap`.
    """

    end: str
    gap: str = ""
    gap_ids: tuple[int, ...] = ()


def progress(text: str | bytes, at: int, item: str | int) -> int:
    """How much of the beginning of `text` stands at the end, once `item` follows.

    Args:
        text: what is looked for.
        at: how much of its beginning stands at the end so far; less than all of it.
        item: the next character or byte.
    """
    while at and text[at] != item:
        at = next((n for n in range(at - 1, 0, -1) if text[:n] == text[at - n : at]), 0)
    return at + 1 if text[at] == item else 0


class SectionScan:
    """Finds where a section ends in a text that comes in pieces."""

    def __init__(self, section: Section) -> None:
        self._section = section
        self._at = 0
        self._gap_at = 0
        self._in_section = True
        self._in_gap = bool(section.gap)

    def feed(self, text: str) -> tuple[str, str]:
        """`text` as (what belongs to the section and its gap, what stands behind)."""
        end, gap = self._section.end, self._section.gap
        for index, char in enumerate(text):
            if self._in_section:
                self._at = progress(end, self._at, char)
                self._in_section = self._at < len(end)
            elif self._in_gap and char == gap[self._gap_at]:
                self._gap_at += 1
                self._in_gap = self._gap_at < len(gap)
            else:
                self._in_gap = False
                return text[:index], text[index:]
        return text, ""
