"""What the worker tells of rows that it looks up (`ForwardOutput.matched`): who has something to
quote.

Law: to know it costs a step next to nothing, however many rows there are and whatever they do.
Knows no memory and no time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from branchline.runtime.core.batch import Int32Array
from branchline.runtime.core.request import Request

ENTER = 3
"""A row that matches so well has something to quote; less comes by chance."""

LONG = 8
"""Rows that match so well make guesses of another kind: it is rarely by chance."""

LINGER = 4
"""Guessed steps without a match after which a row is thought to quote no more: most quotations go
on behind a few other words, and to end a run of guessed steps and begin another takes longer."""

FEW = 8
"""Rows of a step in which rows linger; where there are more, each guess costs something."""


class LookedUp:
    """Rows by their names, as of the last step that was committed."""

    def __init__(self) -> None:
        self._kinds: dict[str, int] = {}
        self._left: dict[str, int] = {}
        self._seen: set[str] = set()
        self._bound: set[str] = set()  # rows that are not free, at least at first

    def told(
        self, requests: Sequence[Request], matched: Int32Array, guessed: Sequence[bool]
    ) -> None:
        """A step is over.

        Args:
            matched: int32 [b], of each of its b rows.
            guessed: which of them had guesses.
        """
        before = self._kinds
        hits = np.flatnonzero(matched >= ENTER).tolist()
        self._kinds = {requests[i].id: 2 if matched[i] >= LONG else 1 for i in hits}
        if len(requests) > FEW:
            return
        for request, had in zip(requests, guessed, strict=True):
            name = request.id
            if name in self._kinds:
                self._left[name] = LINGER
            elif had and name in before and (left := self._left.get(name, 0)) > 0:
                self._left[name], self._kinds[name] = left - 1, before[name]

    def quoting(self, requests: Sequence[Request]) -> Iterator[tuple[Request, int]]:
        """Free rows that match, and of which kind their guesses are."""
        if self._kinds:
            for request in requests:
                kind = self._kinds.get(request.id)
                if kind is not None and is_free(request):
                    yield request, kind

    def others(self, requests: Sequence[Request]) -> list[Request]:
        """Rows that are not free, so that nobody has looked for what could be guessed."""
        for name in {request.id for request in requests} - self._seen:
            self._seen.add(name)
            request = next(one for one in requests if one.id == name)
            if not is_free(request):
                self._bound.add(name)
        if not self._bound:
            return []
        return [one for one in requests if one.id in self._bound and not is_free(one)]

    def finished(self, request: Request) -> None:
        """The sequence has ended."""
        self._seen.discard(request.id)
        self._bound.discard(request.id)
        self._kinds.pop(request.id, None)
        self._left.pop(request.id, None)


def is_free(request: Request) -> bool:
    """Whether an id can be sampled and kept by what the worker knows of the row."""
    sampling = request.sampling
    plain = request.matcher is None and not sampling.has_penalties
    return plain and request.output_len >= sampling.min_tokens
