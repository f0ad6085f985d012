"""What steps with guesses cost, as far as it has been measured, and what may be spent on measuring.

Times are given, not taken. A step of R rows that checks n guesses takes some time more than a plain
one that follows a plain one. That extra is measured for the numbers that occur, and drawn as a line
between and beyond them. Where kinds of steps change, from plain to guessed ones or back, two steps
do not overlap, or are not queued ahead: what that costs is known apart, by comparing the first step
of a run with the next.
"""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeVar

T = TypeVar("T")

RECENT = 9
"""Times of a kind of step that are remembered."""

_FADE = 0.9


def bucket(count: int) -> int:
    """Numbers that are near each other, as one: 1, 2, 3, 4, 6, 8, 12, 16, …"""
    if count <= 4:
        return count
    half = 1 << (count - 1).bit_length() - 1
    return half + half // 2 if count <= half + half // 2 else 2 * half


@dataclass(slots=True)
class Usual:
    """The median of the last values: on a machine that does other things, too, some steps take
    several times as long as they need.

    Attributes:
        weight: about how many values there have been lately.
    """

    recent: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))
    weight: float = 0.0

    def add(self, value: float) -> None:
        """One more value."""
        self.recent.append(value)
        self.weight = self.weight * _FADE + 1.0

    @property
    def value(self) -> float:
        """Of at least one."""
        return statistics.median(self.recent)

    @property
    def least(self) -> float:
        """A low one of them, a quarter from the least."""
        return sorted(self.recent)[(len(self.recent) - 1) // 4]


class Costs:
    """Seconds of steps.

    Args:
        filled: fewer guesses than have been timed are thought to cost what those did, since steps
            are filled up; else the less the fewer they are.
    """

    def __init__(self, *, filled: bool = False) -> None:
        self._filled = filled
        self._plain: dict[int, Usual] = {}
        self._extra: dict[int, dict[int, Usual]] = {}
        self._begin: dict[int, Usual] = {}
        self._end: dict[int, Usual] = {}
        self._begun: tuple[int, int, float] | None = None  # first step of a run: rows, guesses

    def add(
        self,
        rows: int,
        guesses: int,
        seconds: float,
        *,
        first: bool = False,
        early: float = 0.0,
    ) -> None:
        """A step of `rows` rows that checked so many guesses, 0 = plain, took so long.

        Args:
            first: the step before was of the other kind, plain or guessed.
            early: seconds by which that one took longer, since this one was queued meanwhile.
        """
        near = bucket(rows)
        if guesses == 0 and not first:
            self._plain.setdefault(near, Usual()).add(seconds)
            return
        if near not in self._plain:
            return
        extra = seconds - self._plain[near].least
        if guesses == 0:
            self._end.setdefault(near, Usual()).add(max(0.0, extra))
            return
        kind = near, bucket(guesses)
        if first:
            extra += early
            self._begun = *kind, extra
            extra -= _value(self._begin.get(near))
        elif self._begun is not None:
            if self._begun[:2] == kind:
                self._begin.setdefault(near, Usual()).add(max(0.0, self._begun[2] - extra))
            self._begun = None
        self._extra.setdefault(near, {}).setdefault(kind[1], Usual()).add(max(0.0, extra))

    def plain(self, rows: int) -> float | None:
        """Seconds of a plain step; None where nothing of the kind is known.

        Of the last ones a low value: behind a run of guessed steps it takes some until they overlap
        as in a run of their own, and what is thought too long makes guesses seem to pay.
        """
        found = _nearest(self._plain, rows)
        return None if found is None else found.least

    def edges(self, rows: int) -> float:
        """Seconds that a run of guessed steps costs by beginning and ending, as far as known."""
        return _value(_nearest(self._begin, rows)) + _value(_nearest(self._end, rows))

    def extra(self, rows: int, guesses: int, *, hoped: bool = False) -> float | None:
        """Seconds that so many guesses add to a step within a run; None where nothing of the kind
        is known.

        Args:
            hoped: more than have been timed add nothing; else they add as much as those have.
        """
        known = _nearest(self._extra, rows)
        if not known:
            return None
        measured = [(n, usual.value) for n, usual in sorted(known.items())]
        points = [(0, measured[0][1] if self._filled else _fixed(measured)), *measured]
        for (n, low), (m, high) in pairwise(points):
            if guesses <= m:
                return low + (high - low) * (guesses - n) / (m - n)
        (n, low), (m, high) = points[-2:]
        slope = 0.0 if hoped else max(0.0, (high - low) / (m - n), high / m)
        return high + slope * (guesses - m)

    def timed(self, rows: int, guesses: int) -> float:
        """About how many steps with about so many guesses have been timed lately."""
        found = (_nearest(self._extra, rows) or {}).get(bucket(guesses))
        return 0.0 if found is None else found.weight

    def most(self, rows: int) -> int:
        """The most guesses that a step of such a number of rows has been timed with."""
        return max(_nearest(self._extra, rows) or (0,))

    def tries(self, rows: int) -> float:
        """About how many steps with guesses of such a number of rows have been timed lately."""
        known = _nearest(self._extra, rows)
        return 0.0 if not known else sum(usual.weight for usual in known.values())


def _fixed(measured: list[tuple[int, float]]) -> float:
    """What guesses add however few they are: where the line through the fewest two ends."""
    if len(measured) < 2:
        return 0.0
    (n, low), (m, high) = measured[:2]
    return min(max(0.0, low - (high - low) / (m - n) * n), low)


def _value(usual: Usual | None) -> float:
    return 0.0 if usual is None else usual.value


def _nearest(known: dict[int, T], rows: int) -> T | None:
    """What is known of the nearest number of rows, at most twice as many or half of them."""
    near = [n for n in known if n <= 2 * rows and rows <= 2 * n]
    return known[min(near, key=lambda n: abs(n - rows))] if near else None


@dataclass(slots=True)
class Budget:
    """Seconds that may be lost: a share of those that pass, saved up to a limit that is given with
    each step. What a single loss takes beyond what there is has to be earned before the next.

    Attributes:
        share: of the time.
        credit: seconds; below 0 = overdrawn; None = nothing has been earned yet.
        most: the limit that was given last.
    """

    share: float
    credit: float | None = None
    most: float = 0.0

    def earn(self, seconds: float, most: float, *, first: float = 0.0) -> None:
        """So much time has passed, the first of it with so much saved already."""
        before = first if self.credit is None else self.credit
        self.credit, self.most = min(before + self.share * seconds, most), most

    def passes(self, seconds: float) -> None:
        """So much time has passed in which nothing could be spent."""
        if self.credit is not None and self.credit < self.most:
            self.credit = min(self.credit + self.share * seconds, self.most)

    def spend(self, seconds: float) -> None:
        """So much was lost."""
        self.credit = (self.credit or 0.0) - seconds

    def wait(self, cost: float, most: float) -> float:
        """Seconds that must pass before such a loss may be risked; 0 = it may be now."""
        if self.credit is None:
            return 0.0
        return max(0.0, min(cost, most) - self.credit) / self.share
