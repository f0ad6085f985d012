"""How many guesses pay: measured times of steps against measured acceptance.

Law: what is lost by trying is bounded: beyond a few first steps at most `TRIED` of the time goes
into trying what is not known to pay. Decisions change how fast outputs come, never what they are.
Times are given, not taken: knows no clock, no drafter and no model.

A step of R rows that checks n guesses takes some time more than a plain one. That extra is measured
for the numbers that occur and drawn as a line between and beyond them. What k guesses of a row
bring is measured at each proposal for every smaller number, too, by counting how many of the first
k were kept. So one large proposal tells about all small ones. Of the guesses that a row is allowed,
those that are not likely enough for what one costs are not made (`least`).
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeVar

T = TypeVar("T")

TRIED = 0.01
"""Share of the time that may be spent on trying what does not seem to pay."""

FIRST_TRIES = 3
"""Steps with few guesses that are run before anything is known of their time."""

FIRST_ROWS = 16
"""Rows that have guesses in those; a drafter may need several turns for more."""

GAIN = 1.05
"""Guesses must promise to be so much faster than none."""

BEYOND = 3
"""So many times the guesses of a step that have been timed, more are not decided on unseen."""

HELD = 8
"""Steps that a decision stands."""

RESTED = 64
"""Steps that pass at most before rows are looked at again, where no guesses pay."""

ASKED = 0.03
"""Share of the time that may go into asking rows of which none promises anything."""

MORE_EVERY = 24
"""While guesses pay, after so many steps some with more of them are tried."""

PLAIN_EVERY = 100
"""While guesses pay, one step of so many is plain, so that its time stays known."""

COOL = (16, 1024)
"""Steps for which a row that guesses do not help is left alone: at first, and at most."""

POOR = 0.05
"""Guesses kept in a step below which they help no row, however little they cost."""

OWN = 0.6
"""Of what a guess costs in the mean, the share that its own check costs; finding it is the rest. It
is the larger as the time could be spent on steps that bring more than one id."""

LIKELY = 0.15
"""A guess of such a chance is made in any case: the share is rough, and where guesses are few, most
of what they cost in the mean is not their own."""

QUOTES = 0.75
"""Where such a share of a row's guesses is kept, further ones are thought to be kept like them."""

RECENT = 9
"""Times of a kind of step that are remembered."""

_FADE = 0.9
_TIME_FADE = 0.9
_PRIOR = 2.0


def bucket(count: int) -> int:
    """Numbers that are near each other, as one: 1, 2, 3, 4, 6, 8, 12, 16, …"""
    if count <= 4:
        return count
    half = 1 << (count - 1).bit_length() - 1
    return half + half // 2 if count <= half + half // 2 else 2 * half


@dataclass(slots=True)
class _Mean:
    """A mean that fades: later values count more."""

    total: float = 0.0
    weight: float = 0.0

    def add(self, value: float, fade: float) -> None:
        self.total = self.total * fade + value
        self.weight = self.weight * fade + 1.0

    @property
    def value(self) -> float:
        return self.total / self.weight


@dataclass(slots=True)
class _Usual:
    """The median of the last values: on a machine that does other things, too, some steps take
    several times as long as they need.

    Attributes:
        weight: about how many values there have been lately.
    """

    recent: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))
    weight: float = 0.0

    def add(self, value: float) -> None:
        self.recent.append(value)
        self.weight = self.weight * _TIME_FADE + 1.0

    @property
    def value(self) -> float:
        return statistics.median(self.recent)


class Costs:
    """Seconds of steps, as far as they are known."""

    def __init__(self) -> None:
        self._plain: dict[int, _Usual] = {}
        self._extra: dict[int, dict[int, _Usual]] = {}

    def add(self, rows: int, guesses: int, seconds: float) -> None:
        """A step of `rows` rows that checked so many guesses, 0 = plain, took so long."""
        near = bucket(rows)
        if guesses == 0:
            self._plain.setdefault(near, _Usual()).add(seconds)
        elif near in self._plain:
            extra = max(0.0, seconds - self._plain[near].value)
            known = self._extra.setdefault(near, {})
            known.setdefault(bucket(guesses), _Usual()).add(extra)

    def plain(self, rows: int) -> float | None:
        """Seconds of a plain step; None where nothing of the kind is known."""
        found = _nearest(self._plain, rows)
        return None if found is None else found.value

    def extra(self, rows: int, guesses: int) -> float | None:
        """Seconds that so many guesses add; None where nothing of the kind is known."""
        known = _nearest(self._extra, rows)
        if not known:
            return None
        points = [(0, 0.0), *((n, usual.value) for n, usual in sorted(known.items()))]
        for (n, low), (m, high) in pairwise(points):
            if guesses <= m:
                return low + (high - low) * (guesses - n) / (m - n)
        (n, low), (m, high) = points[-2:]
        slope = max(0.0, (high - low) / (m - n), high / m)
        return high + slope * (guesses - m)

    def most(self, rows: int) -> int:
        """The most guesses that a step of such a number of rows has been timed with."""
        return max(_nearest(self._extra, rows) or (0,))

    def tries(self, rows: int) -> float:
        """About how many steps with guesses of such a number of rows have been timed lately."""
        known = _nearest(self._extra, rows)
        return 0.0 if not known else sum(usual.weight for usual in known.values())


def _nearest(known: dict[int, T], rows: int) -> T | None:
    """What is known of the nearest number of rows, at most twice as many or half of them."""
    near = [n for n in known if n <= 2 * rows and rows <= 2 * n]
    return known[min(near, key=lambda n: abs(n - rows))] if near else None


@dataclass(slots=True)
class _Row:
    """What guesses have brought a sequence.

    Attributes:
        cool: the step up to which it is left alone.
        patience: steps that it is left alone for next.
    """

    kept: list[_Mean]
    cool: int = 0
    patience: int = COOL[0]


@dataclass(slots=True)
class Decision:
    """Guesses for each row, and for how many steps still.

    Attributes:
        usual: seconds of a step of the kind that seemed best, where others are tried to learn.
        rows: that are tried, whatever they have brought; 0 = all that seem to be worth it.
    """

    guesses: int
    steps: int
    usual: float | None = None
    rows: int = 0


class Pace:
    """Decides, step by step, how many guesses rows get.

    Args:
        most: guesses of a row at most.
        limit: guesses of a step at most.
    """

    def __init__(self, most: int, limit: int) -> None:
        self._rungs = [k for k in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64) if k < most] + [most]
        self._limit = limit
        self._costs = Costs()
        self._kept = [_Mean() for _ in self._rungs]
        self._made = [_Mean() for _ in self._rungs]  # guesses of those that a row was allowed
        self._rows: dict[str, _Row] = {}
        self._decision = Decision(0, 0)
        self._decided_for = 0
        self._step = 0
        self._credit = 0.0
        self._since_plain = self._since_more = 0
        self._price = 0.0  # of one guess, in ids that must be kept for it

    @property
    def least(self) -> float:
        """Chance of being kept below which a guess is not worth checking; 0 = not known."""
        return min(OWN * self._price, LIKELY)

    # -- what is told ------------------------------------------------------------------------------

    def stepped(self, rows: int, guesses: int, seconds: float) -> None:
        """A step of decoding rows alone is over, `seconds` after the one before."""
        self._costs.add(rows, guesses, seconds)
        self._credit = min(self._credit + TRIED * seconds, 20.0 * seconds)
        self._since_plain = self._since_plain + 1 if guesses else 0
        self._since_more += 1
        if guesses and self._decision.usual is not None:
            self._credit -= max(0.0, seconds - self._decision.usual)

    def asked_in_vain(self, rows: int, seconds: float) -> None:
        """No row of the next step, of `rows` rows, promises anything; to ask them took so long.
        They are left alone until that is a small share of the time."""
        self._decided_for = rows
        plain = self._costs.plain(rows)
        steps = 1 if plain is None else min(int(seconds / (ASKED * plain)), RESTED)
        self._decision = Decision(0, steps)
        self._step += 1

    def checked(self, name: str, asked: int, path: Sequence[int], proposed: int) -> None:
        """Of `proposed` guesses for a sequence, of the `asked` that there could be, those of
        `path` (indices) were kept."""
        row = self._row(name)
        for place, k in enumerate(self._rungs):
            if k > asked and proposed == asked:
                break
            kept = float(sum(node < k for node in path))
            row.kept[place].add(kept, _FADE)
            self._kept[place].add(kept, 0.99)
            self._made[place].add(float(min(k, proposed)), 0.99)
        if self._gain(row, self._rung_of(asked)) < max(POOR, self._price * proposed):
            row.cool, row.patience = self._step + row.patience, min(2 * row.patience, COOL[1])
        elif path:
            row.patience = COOL[0]

    def finished(self, name: str) -> None:
        """The sequence has ended."""
        self._rows.pop(name, None)

    # -- what is decided ---------------------------------------------------------------------------

    def rests(self, rows: int) -> bool:
        """Whether the next step, of `rows` rows, has no guesses, whatever the rows are; then
        nothing else is to be asked for it. So a step costs next to nothing where none pay."""
        if not self._stands(rows) or self._decision.guesses:
            return False
        self._begin_step()
        return True

    def guesses(self, names: Sequence[str], rows: int) -> list[int]:
        """For the next step of `rows` rows: guesses for each of some of them, 0 = none."""
        known = [self._row(name) for name in names]
        if not self._stands(rows):
            self._decide(known, rows)
        self._begin_step()
        wanted = self._decision.guesses
        if wanted == 0:
            return [0] * len(names)
        tried = self._decision.rows
        if tried == 0:
            return [wanted if self._willing(row) else 0 for row in known]
        first = self._step % len(known)  # not always the same ones
        return [wanted if (i - first) % len(known) < tried else 0 for i in range(len(known))]

    def _stands(self, rows: int) -> bool:
        near = 4 * abs(rows - self._decided_for) <= self._decided_for  # rows come and go
        return self._decision.steps > 0 and near

    def _begin_step(self) -> None:
        self._step += 1
        self._decision.steps -= 1

    def _willing(self, row: _Row) -> bool:
        return row.cool <= self._step

    def _decide(self, known: list[_Row], rows: int) -> None:
        self._decided_for = rows
        plain = self._costs.plain(rows)
        if plain is None or self._since_plain >= PLAIN_EVERY or not known:
            self._decision = Decision(0, 2)
            return
        willing = [row for row in known if self._willing(row)]
        best = self._best(willing, rows, plain) if willing else 0
        if best:
            self._go_on(best, len(willing), rows, plain)
        else:
            self._try_a_few(len(known), rows, plain)

    def _best(self, willing: list[_Row], rows: int, plain: float) -> int:
        """The number of guesses that promises most; 0 where none promises enough."""
        best, promise = 0, GAIN
        if self._untried(rows):
            return best
        limit = min(self._limit, BEYOND * self._costs.most(rows))
        for place, k in enumerate(self._rungs):
            count = self._guesses(place, len(willing))
            if count > limit:
                break
            extra = self._costs.extra(rows, count) or 0.0
            kept = sum(self._gain(row, place) for row in willing)
            speed = (1.0 + kept / rows) / (1.0 + extra / plain)
            if speed > promise:
                best, promise = k, speed
        return best

    def _go_on(self, best: int, count: int, rows: int, plain: float) -> None:
        """Do what is best, and now and then somewhat more."""
        guesses = self._guesses(self._rungs.index(best), count)
        extra = self._costs.extra(rows, guesses) or 0.0
        self._price = extra / guesses * rows / plain
        self._decision = Decision(best, HELD)
        place = self._rungs.index(best) + 2
        more = self._rungs[min(place, len(self._rungs) - 1)]
        due = self._since_more >= MORE_EVERY and self._credit >= 0.0
        if due and more > best and more * count <= self._limit:
            self._since_more = 0
            self._decision = Decision(more, 3, usual=plain + extra)

    def _try_a_few(self, count: int, rows: int, plain: float) -> None:
        """Try guesses where none seem to pay, if little enough is lost by it; else none until it
        may be."""
        self._decision = Decision(0, HELD)
        few = 1 if rows > 8 else min(4, self._rungs[-1])
        untried = self._untried(rows)
        count = min(count, FIRST_ROWS) if untried else count
        if few * count > self._limit:
            return
        cost = self._costs.extra(rows, few * count)
        if untried or (cost is not None and self._credit >= cost):
            self._decision = Decision(few, 1, usual=plain, rows=count)
        elif cost is not None:
            steps = int((cost - self._credit) / (TRIED * plain)) + 1
            self._decision.steps = min(max(steps, HELD), RESTED)

    def _guesses(self, place: int, count: int) -> int:
        """About how many guesses so many rows make that are allowed this rung."""
        made, k = self._made[place], self._rungs[place]
        share = made.value if made.weight >= 1.0 else float(k)
        return max(count, round(share * count))

    def _untried(self, rows: int) -> bool:
        return self._costs.tries(rows) < 0.9 * FIRST_TRIES

    def _row(self, name: str) -> _Row:
        row = self._rows.get(name)
        if row is None:
            row = self._rows[name] = _Row([_Mean() for _ in self._rungs])
        return row

    def _rung_of(self, asked: int) -> int:
        return max((i for i, k in enumerate(self._rungs) if k <= asked), default=0)

    def _gain(self, row: _Row, place: int) -> float:
        """Guesses of the rung that are likely kept: the row's own, and at first everybody's."""
        own, usual = row.kept[place], self._usual(place)
        found = (own.total + _PRIOR * usual) / (own.weight + _PRIOR)
        if place == 0 or own.weight > 0.0:
            return found
        # More than the row has had: what others keep of so many says little of one that quotes.
        fewer = self._gain(row, place - 1)
        k, less = self._rungs[place], self._rungs[place - 1]
        return max(found, fewer + 0.7 * (k - less) if fewer >= QUOTES * less else fewer)

    def _usual(self, place: int) -> float:
        """The same for a sequence of which nothing is known; beyond the largest rung that was
        tried, somewhat fewer of the further ones are thought to be kept."""
        if self._kept[place].weight >= 1.0:
            return self._kept[place].value
        k = self._rungs[place]
        if place == 0:
            return 0.5
        before, less = self._usual(place - 1), self._rungs[place - 1]
        earlier = self._usual(place - 2) if place > 1 else 0.0
        step = less - (self._rungs[place - 2] if place > 1 else 0)
        return before + 0.7 * (before - earlier) / step * (k - less)
