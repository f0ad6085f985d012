"""What the worker tells of rows that it looks up (`ForwardOutput.matched`): who has something to
quote.

Law: to know it costs a step next to nothing, however many rows there are and whatever they do.
Knows no memory and no time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from branchline.runtime.core.batch import Int32Array
from branchline.runtime.core.request import Request

if TYPE_CHECKING:
    from branchline.runtime.scheduler.plan_builder import Segment

ENTER = 3
"""A row that matches so well has something to quote; less comes by chance."""

LONG = 8
"""Rows that match so well make guesses of another kind: it is rarely by chance."""

LINGER = 4
"""Guessed steps without any match after which a row is thought to quote no more: most quotations go
on behind a few other words, and to end a run of guessed steps and begin another takes longer."""

FEW = 8
"""Rows of a step in which rows linger; where there are more, each guess costs something."""


class DeviceMatches:
    """Rows by their names, as of the last step that was committed."""

    def __init__(self) -> None:
        self._kinds: dict[str, int] = {}
        self._left: dict[str, int] = {}
        self._seen: set[str] = set()
        self._bound: set[str] = set()  # rows that are not free, at least at first

    def observe(self, segments: Sequence[Segment], matched: Int32Array, *, tried: bool) -> None:
        """A step of these segments is over.

        Args:
            matched: int32 [b], of each of its b rows.
            tried: its guesses were not thought to pay.
        """
        before = self._kinds
        hits = np.flatnonzero(matched >= ENTER).tolist()
        self._kinds = {segments[i].request.id: 2 if matched[i] >= LONG else 1 for i in hits}
        if len(segments) > FEW:
            return
        for segment, match in zip(segments, matched.tolist(), strict=True):
            name = segment.request.id
            going_on = segment.draft is not None and name in before and not tried
            if name in self._kinds or (going_on and match):
                self._left[name] = LINGER
            elif not going_on or self._left.get(name, 0) == 0:
                continue
            else:
                self._left[name] -= 1
            self._kinds.setdefault(name, before.get(name, 1))

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
