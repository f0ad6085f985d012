"""How many guesses are kept, of each sequence and of all, by how many there are.

Law: one proposal of many guesses tells about all smaller ones, whose guesses are its first. Knows
no time, and not what is decided.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from operator import mul

QUOTES = 0.75
"""Where such a share of a row's guesses is kept, further ones are thought to be kept like them."""

_FADE = 0.9
_PRIOR = 2.0


@dataclass(slots=True)
class Mean:
    """A mean that fades: later values count more."""

    total: float = 0.0
    weight: float = 0.0

    def add(self, value: float, fade: float) -> None:
        """One more value."""
        self.total = self.total * fade + value
        self.weight = self.weight * fade + 1.0

    @property
    def value(self) -> float:
        """Of at least one."""
        return self.total / self.weight


ROUND = 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64
"""Numbers of tokens that steps may be filled up to, and of guesses where they are not."""


def rungs_up_to(most: int, *, filled: bool = False) -> list[int]:
    """Numbers of guesses that a row may be allowed, ascending, `most` the last of them.

    Args:
        filled: steps are filled up to round numbers of tokens, of which the row's last id is one:
            then these are just as many guesses as that leaves room for.
    """
    return [k - filled for k in ROUND if 0 < k - filled < most] + [most]


class Acceptance:
    """Guesses kept by rung, as what each rung keeps beyond the one before: of two rungs the further
    one is known from fewer proposals, which may have been lucky ones for both.

    Args:
        rungs: see `rungs_up_to`.
    """

    def __init__(self, rungs: list[int]) -> None:
        self.rungs = rungs
        self._all = self.row()
        self._made = self.row()  # guesses of those that a row was allowed

    def row(self) -> list[Mean]:
        """Of a sequence of which nothing is known, by rung."""
        return [Mean() for _ in self.rungs]

    def add(self, row: list[Mean], asked: int, path: Sequence[int], proposed: int) -> None:
        """Of `proposed` guesses for a row, of the `asked` that there could be, those of `path`
        (indices) were kept."""
        less = 0
        for place, k in enumerate(self.rungs):
            if k > asked and proposed == asked:
                break
            kept = float(sum(less <= node < k for node in path))
            row[place].add(kept, _FADE)
            self._all[place].add(kept, 0.99)
            self._made[place].add(float(min(k, proposed)), 0.99)
            less = k

    def rung_of(self, asked: int) -> int:
        """The largest rung of at most so many guesses."""
        return max((i for i, k in enumerate(self.rungs) if k <= asked), default=0)

    def made(self, place: int, count: int) -> int:
        """About how many guesses so many rows make that are allowed this rung."""
        made, k = self._made[place], self.rungs[place]
        share = made.value if made.weight >= 1.0 else float(k)
        return max(count, round(share * count))

    def gains(self, row: list[Mean], *, hoped: bool = False) -> list[float]:
        """Guesses that are likely kept, by rung: the row's own, and at first everybody's.

        Args:
            hoped: of more than the row has had, as many as there may be; else as many as are sure.
        """
        gains = []
        kept = 0.0
        before = usual = 0.5  # of what a rung keeps beyond the one before
        less = width = 0
        for k, own, others in zip(self.rungs, row, self._all, strict=True):
            further = 0.7 * (k - less) / width if width else 1.0
            # Beyond the largest rung that was tried, somewhat fewer are thought to be kept.
            usual = others.value if others.weight >= 1.0 else usual * further
            found = (own.total + _PRIOR * usual) / (own.weight + _PRIOR)
            if width and own.weight == 0.0:
                # What others keep of so many says little of a row that quotes.
                if hoped:
                    found = before * further
                elif kept >= QUOTES * less:
                    found = max(found, 0.7 * (k - less))
            kept, before = kept + found, found
            less, width = k, k - less
            gains.append(kept)
        return gains


@dataclass(slots=True)
class Row:
    """What guesses of one kind have brought a sequence.

    Attributes:
        kept: by rung.
        others: what such guesses bring others.
        cool: the step up to which it is left alone.
        patience: steps that it is left alone for next.
    """

    kept: list[Mean]
    others: Acceptance
    cool: int
    patience: int

    def gain(self, place: int) -> float:
        """Guesses of a rung that are likely kept."""
        return self.others.gains(self.kept)[place]


class Rows:
    """Sequences, each with what it is known for by kind of guesses.

    Args:
        rungs: of guesses that a row may be allowed.
        patience: of a row at first.
    """

    def __init__(self, rungs: list[int], patience: int) -> None:
        self.rungs, self._patience = rungs, patience
        self._kept = {1: Acceptance(rungs)}  # by kind
        self._rows: dict[tuple[str, int], Row] = {}
        self._kinds: dict[str, int] = {}  # when they were last asked for

    @property
    def kinds(self) -> int:
        """Kinds of guesses that there have been, at least 1."""
        return len(self._kept)

    def ask(self, name: str, kind: int) -> Row:
        """A row whose guesses will be of this kind."""
        self._kinds[name] = kind
        row = self._rows.get((name, kind))
        if row is None:
            others = self._kept.get(kind)
            if others is None:
                others = self._kept[kind] = Acceptance(self.rungs)
            row = self._rows[name, kind] = Row(others.row(), others, 0, self._patience)
        return row

    def last(self, name: str) -> Row:
        """As it was last asked for."""
        return self.ask(name, self._kinds.get(name, 1))

    def finished(self, name: str) -> bool:
        """The sequence has ended; whether anything was known of it."""
        for kind in self._kept:
            self._rows.pop((name, kind), None)
        return self._kinds.pop(name, None) is not None


def gains_of(rows: Sequence[Row], *, hoped: bool = False) -> list[float]:
    """Guesses that are likely kept of all these rows together, by rung; see `Acceptance.gains`."""
    # Nothing is known of most rows of a large batch: each is as the others of its kind.
    fresh = Counter(row.others for row in rows if row.kept[0].weight == 0.0)
    found = [(n, kept.gains(kept.row(), hoped=hoped)) for kept, n in fresh.items()]
    for row in rows:
        if row.kept[0].weight > 0.0:
            found.append((1, row.others.gains(row.kept, hoped=hoped)))
    counts, gains = zip(*found, strict=True)
    return [sum(map(mul, counts, column)) for column in zip(*gains, strict=True)]


def guesses_made(rows: Sequence[Row], place: int) -> int:
    """About how many guesses the rows make if they are allowed this rung."""
    kinds = Counter(row.others for row in rows)
    return sum(others.made(place, count) for others, count in kinds.items())
