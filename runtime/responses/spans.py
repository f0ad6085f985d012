"""Stretches of a growing text, in characters from its beginning.

Invariant: stretches are in order and do not overlap; they depend on the text alone, not on how it
was cut.
"""

from __future__ import annotations


class Spans:
    """Where something stands in a text, noted as it is read."""

    def __init__(self) -> None:
        self._closed: list[tuple[int, int]] = []
        self._begin: int | None = None

    def begin(self, at: int) -> None:
        """A stretch begins, unless one is open."""
        if self._begin is None:
            self._begin = at

    def end(self, at: int) -> None:
        """The open stretch, if there is one, ends before `at`."""
        if self._begin is not None:
            self._closed.append((self._begin, at))
            self._begin = None

    def until(self, end: int) -> list[tuple[int, int]]:
        """All stretches of a text of `end` characters."""
        return [*self._closed, *([] if self._begin is None else [(self._begin, end)])]
