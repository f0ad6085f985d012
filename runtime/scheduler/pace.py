"""How many guesses pay: measured times of steps against measured acceptance.

Law: what is lost by guessing is bounded, by the clock and from the first step on: `TRIED` of the
time may go into steps whose guesses are not known to pay, `ASKED` into asking rows in vain, and
guesses that bring less than was expected of them are given up. Decisions change how fast outputs
come, never what they are. Times are given, not taken: knows no clock, no drafter and no model.

What guesses cost is known by `step_costs`, what they bring by `acceptance`. Of the guesses that a
row is allowed, those that are not likely enough for what one costs are not made (`least`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from branchline.runtime.scheduler.acceptance import (
    Row,
    Rows,
    gains_of,
    guesses_made,
    rungs_up_to,
)
from branchline.runtime.scheduler.outcomes import ASKED, COOL, Allowance, Outcome
from branchline.runtime.scheduler.step_costs import Costs, Usual
from branchline.runtime.scheduler.stretches import Stretches

SAVED = 5.0, 4.0
"""Plain steps' time of either that is saved up at most, with many rows and with few. Of the latter
each row's share is there from the start."""

FIRST_TRIES = 3
"""Steps with guesses that are run before anything is believed of their time."""

FIRST_ROWS = 16
"""Rows that have guesses in those; a drafter may need several turns for more."""

FIRST_GUESSES = 4, 16
"""Guesses of one row in the first steps that are tried, by turns, and the least of every other try
later: whether more of them cost more tells a device from a processor. Where steps are filled up,
they are the second number from the first."""

TRIED_STEPS = 8
"""Steps of a try of few rows at most: to begin and to end it may cost more than they do. It ends
sooner where what may be lost has been."""

GAIN = 1.05
"""Guesses must promise to be so much faster than none, to be begun with."""

WORTH = 1.02
"""And promise and bring so much, to be gone on with: times that are compared are not quite sure."""

BEYOND = 3
"""So many times the guesses of a step that have been timed, more are not decided on unseen."""

HOPELESS = 0.9, 4, 16.0
"""Where no number of guesses would be worth so much even if more of them cost no more than those
that have been timed, what is lost by trying counts more: by this power of how far off it is, and so
many times at most. So it is with more than `FEW` rows, whose tries are dear."""

FEW = 8
"""Rows that are tried with several guesses each at once, and looked at anew when one ends."""

HELD = 8
"""Steps that a decision stands."""

RESTED = 64, 256, 1024
"""Steps that pass at most before it is decided anew, where no guesses pay: with few rows, with
more, and where it is known that nothing may be spent until then."""

MORE_EVERY = 24
"""While guesses pay, after so many steps some with more of them are tried."""

PLAIN_EVERY = 100, 400
"""After so many steps that were not plain, a few are, so that their time stays known; after more
where guesses bring so much more than enough (`SURELY`) that it hardly matters."""

SURELY = 1.2
"""See there: plain steps for the same ids would have taken so many times as long."""

PLAIN_STEPS = 4
"""Those few: the first does not overlap with the one before."""

POOR = 0.05
"""Guesses kept in a step below which they help no row, however little they cost."""

OWN = 0.6
"""Of what a guess costs in the mean, the share that its own check costs; finding it is the rest. It
is the larger as the time could be spent on steps that bring more than one id."""

LIKELY = 0.15
"""A guess of such a chance is made in any case: the share is rough, and where guesses are few, most
of what they cost in the mean is not their own."""

HELD_UP = 4.0
"""So many times what it takes to ask may be lost by it: what follows comes late for a device."""

PAUSE = 8.0
"""A step that takes so many plain ones longer than those of its kind was held up by others."""


@dataclass(slots=True)
class Decision:
    """Guesses for each row, and for how many steps still.

    Attributes:
        usual: seconds of an id of each row by what seemed best, where others are tried.
        rows: that are tried, whatever they have brought; 0 = all that seem to be worth it.
        dear: so many times what is lost by trying counts.
        kind: of the guesses that it was made for, where there are few rows.
    """

    guesses: int
    steps: int
    usual: float | None = None
    rows: int = 0
    dear: float = 1.0
    kind: int = 1


# size: Pace: what is told and what is decided by it are one state
class Pace:
    """Decides, step by step, how many guesses rows get.

    Args:
        most: guesses of a row at most.
        limit: guesses of a step at most.
        filled: steps are filled up to round numbers of tokens.
        priced: each guess costs the host something, so fewer cost less even then.
        told: the worker tells which rows have guesses, so that nobody has to be asked.
    """

    def __init__(
        self,
        most: int,
        limit: int,
        *,
        filled: bool = False,
        priced: bool = False,
        told: bool = False,
    ) -> None:
        self._most, self._limit, self._filled, self._told = most, limit, filled, told
        self._costs = Costs(filled=filled and not priced)
        self._few, self._many = Allowance(), Allowance()  # up to FEW rows, and more
        self._in_vain = Usual()  # seconds that were lost by asking in vain
        self._rows = Rows(rungs_up_to(most, filled=filled), COOL[0])
        self._rungs = self._rows.rungs
        self._decision = Decision(0, 0)
        self._decided_for = 0
        self._step = 0
        self._brought = 0  # guesses kept since the last step was told of
        self._lost = 0.0  # times that what the next step loses counts as tried
        self._stretches = Stretches()
        self._turn = self._untold = 0  # of what is tried, and the step by which it will be known
        self._price = 0.0  # of one guess, in ids that must be kept for it

    def another(self) -> Pace:
        """One for steps with constrained rows, that knows nothing yet: a constraint is asked about
        each guess."""
        return Pace(self._most, self._limit, filled=self._filled, priced=True, told=self._told)

    @property
    def decision(self) -> Decision:
        """What the next step is planned by."""
        return self._decision

    @property
    def least(self) -> float:
        """Chance of being kept below which a guess is not worth checking; 0 = not known."""
        return min(OWN * self._price, LIKELY)

    @property
    def _plain_every(self) -> int:
        """See `PLAIN_EVERY`."""
        found = self._allowed(self._decided_for).outcome
        return PLAIN_EVERY[found.steps > HELD and found.plain > SURELY * found.took]

    # -- what is told ------------------------------------------------------------------------------

    def stepped(
        self,
        rows: int,
        guesses: int,
        seconds: float,
        *,
        waited: bool = False,
        asked_s: float = 0.0,
        decision: Decision | None = None,
    ) -> None:
        """A step of decoding rows alone is over, `seconds` after the one before.

        Args:
            decision: that it was planned by; None = the last one.
            waited: it was begun when that was over, to have guesses, though it may have none.
            asked_s: of this time, spent on asking rows.
        """
        brought, self._brought = self._brought, 0
        guessed, stretches = guesses > 0 or waited, self._stretches
        first, queued = stretches.enters(guessed=guessed)
        if not (guessed or first or queued or asked_s) and stretches.passes(
            seconds, looked_at=rows <= FEW
        ):
            return
        early, stretches.early = stretches.early, 0.0
        if guesses > 0 or not (waited or queued or asked_s > 0.0):
            self._costs.add(rows, guesses, seconds, first=first, early=early)
        decided = not self._decision.guesses and stretches.run < HELD
        stretches.counts(guesses, first=first, decided=decided)
        plain = self._costs.plain(rows)
        if plain is None:
            return
        saved, few = _saved(rows, plain), plain * SAVED[1] / rows
        passed = stretches.passed(seconds)
        allowed = self._allowed(rows)
        allowed.earn(passed, saved, plain, first=few)
        (self._many if allowed is self._few else self._few).passes(passed)
        if queued:
            stretches.early = min(max(0.0, seconds - plain), PAUSE * plain)
        if not guessed and not first:
            if asked_s > 0.0:
                # A single step tells little. It may be held up longer than it took to ask.
                self._in_vain.add(min(seconds - plain, HELD_UP * asked_s) / rows)
                allowed.asked.spend(max(0.0, self._in_vain.value * rows))
            return
        took = plain + (self._costs.extra(rows, guesses) or 0.0) + PAUSE * plain
        took = min(seconds, took) + (early if guessed else 0.0)
        self._spend(rows, plain, took, brought, decision or self._decision, guessed=guessed)
        if guessed and asked_s > 0.0 and (decision or self._decision).usual is None:
            # what asking brings may be spent on it
            ids = 1.0 + brought / rows
            allowed.asked.earn(max(0.0, plain * ids - took) / ASKED, plain)

    def _spend(
        self,
        rows: int,
        plain: float,
        took: float,
        brought: int,
        decision: Decision,
        *,
        guessed: bool,
    ) -> None:
        """A step of a run, or the plain one behind it, took so long with all that belongs to it."""
        ids, tried = 1.0 + brought / rows, self._allowed(rows).tried
        if decision.usual is not None:
            lost = took - decision.usual * ids
            if rows > FEW:
                lost = max(0.0, lost) * decision.dear
            tried.spend(lost)  # a run's steps that win make up for those that lose
            if decision is self._decision and tried.wait(0.0, 0.0) > 0.0:
                decision.steps = 0
        elif guessed or not self._lost:
            self._watch(rows, plain * ids, took)
        else:  # the end of what was tried
            tried.spend(max(0.0, took - plain) * self._lost)
        self._lost = 0.0 if decision.usual is None else decision.dear

    def asked(self, rows: int) -> None:
        """Rows were asked for the next step, of `rows` rows, and none promises anything. They are
        asked again as soon as what is lost by it may be."""
        plain = self._costs.plain(rows)
        self._stretches.plans(given=False, promised=False)
        if self._costs_nothing:
            if not self._stands(rows) or self._decision.guesses:
                self._rest(rows, 1 if rows <= FEW else HELD)  # next to nothing, for many rows
            self._begin_step()
        elif plain is not None:  # at first until it is told how long it took
            self._rest(rows, self._unasked(rows, plain) if self._in_vain.weight else 2)
            self._step += 1

    @property
    def _costs_nothing(self) -> bool:
        """Whether to ask rows costs nothing."""
        return self._told and not self._in_vain.weight

    def _unasked(self, rows: int, plain: float) -> int:
        """Steps for which rows are not asked, since it would most likely be in vain."""
        if not self._in_vain.weight:
            return 0
        wait = self._allowed(rows).asked.wait(self._in_vain.value * rows, plain)
        return min(round(wait / plain), RESTED[-1])

    def checked(self, name: str, asked: int, path: Sequence[int], proposed: int) -> None:
        """Of `proposed` guesses for a sequence, of the `asked` that there could be, those of
        `path` (indices) were kept."""
        row = self._rows.last(name)
        self._brought += len(path)
        row.others.add(row.kept, asked, path, proposed)
        if self._decided_for == 1:
            return  # it is alone, and all is decided for it
        place = row.others.rung_of(asked)
        if row.gain(place) < max(POOR, self._price * proposed):
            row.cool, row.patience = self._step + row.patience, min(2 * row.patience, COOL[1])
        elif path:
            row.patience = COOL[0]

    def finished(self, name: str) -> None:
        """The sequence has ended."""
        if self._rows.finished(name) and self._decided_for <= FEW:
            self._decision.steps = 0  # what was decided was decided for this one

    def _watch(self, rows: int, plain: float, took: float) -> None:
        """Guesses that were thought to pay have been made; where they do not, none are for a
        while, which is the longer the more often it happens."""
        allowed = self._allowed(rows)
        found = allowed.outcome
        found.add(plain, took)
        if found.steps < 2.0 + 8.0 / rows:
            return
        if found.plain < WORTH * found.took:
            allowed.trusted.spend(max(0.0, found.took - found.plain))
            until, patience = self._step + found.patience, min(2 * found.patience, COOL[1])
            allowed.outcome = Outcome(until=until, patience=patience)
            self._decision = Decision(0, 0)
        elif found.plain > GAIN * found.took:
            found.patience = COOL[0]

    # -- what is decided ---------------------------------------------------------------------------

    def rests(self, rows: int) -> bool:
        """Whether the next step, of `rows` rows, has no guesses, whatever the rows are; then
        nothing else is to be asked for it. So a step costs next to nothing where none pay."""
        if not self._stands(rows):
            plain = self._costs.plain(rows)
            steps = PLAIN_STEPS
            if plain is not None and self._stretches.since_plain < self._plain_every:
                steps = 0 if self._stretches.run else self._unasked(rows, plain)
            if steps == 0:
                return False
            self._rest(rows, steps)
        return self.goes_on_resting(rows)

    def goes_on_resting(self, rows: int) -> bool:
        """`rests`, as far as it has been decided; where it says yes, that step is counted."""
        if self._decision.guesses or not self._stands(rows):
            return False
        if rows <= FEW and self._costs_nothing:
            return False  # for another kind of guesses it may be decided anew
        self._begin_step()
        return True

    def guesses(
        self, names: Sequence[str], rows: int, kinds: Sequence[int] | None = None
    ) -> list[int]:
        """For the next step of `rows` rows: guesses for each of some of them, 0 = none.

        Args:
            kinds: of their guesses, which are judged apart; None = all the same.
        """
        kinds = kinds or [1] * len(names)
        known = [self._rows.ask(name, kind) for name, kind in zip(names, kinds, strict=True)]
        best = max(kinds, default=1)
        if not self._stands(rows) or (rows <= FEW and self._other(best)):
            self._decide(known, rows)
            self._decision.kind = best
            if self._decision.guesses == 0 and self._rows.kinds > 1 and not self._costs_nothing:
                # another kind may come as soon as they are asked again
                plain = self._costs.plain(rows)
                steps = 1 if plain is None else max(1, self._unasked(rows, plain))
                self._decision.steps = min(self._decision.steps, steps)
        self._begin_step()
        wanted, tried = self._decision.guesses, self._decision.rows
        counts = [0] * len(names)
        if wanted and tried:
            first = self._step % len(known)  # not always the same ones
            for i in range(min(tried, len(known))):
                counts[(first + i) % len(known)] = wanted
        elif wanted:
            counts = [wanted if self._willing(row) else 0 for row in known]
        self._stretches.plans(given=any(counts))
        return counts

    def _other(self, best: int) -> bool:
        """Whether what was decided was decided for another kind of guesses."""
        decided = self._decision
        if decided.guesses == 0 and self._costs_nothing:
            return best > decided.kind
        return best != decided.kind

    def _stands(self, rows: int) -> bool:
        near = 4 * abs(rows - self._decided_for) <= self._decided_for  # rows come and go
        return self._decision.steps > 0 and near

    def _begin_step(self) -> None:
        self._stretches.plans(given=False)
        self._step += 1
        self._decision.steps -= 1

    def _rest(self, rows: int, steps: int) -> None:
        self._decided_for = rows
        self._decision = Decision(0, steps)

    def _willing(self, row: Row) -> bool:
        return row.cool <= self._step

    def _decide(self, known: list[Row], rows: int) -> None:
        plain = self._costs.plain(rows)
        if plain is None or self._stretches.since_plain >= self._plain_every or not known:
            self._rest(rows, PLAIN_STEPS)
            return
        self._decided_for = rows
        willing = [row for row in known if self._willing(row)]
        best, promise = self._best(willing, rows, plain, self._beyond(rows))
        enough = GAIN if self._stretches.run == 0 else WORTH
        untried = self._costs.tries(rows) < 0.9 * FIRST_TRIES
        allowed = self._allowed(rows)
        free = allowed.outcome.until <= self._step and allowed.trusted.wait(0.0, 0.0) == 0.0
        if not untried and promise >= enough and free:
            self._go_on(best, willing, rows, plain, promise)
        else:
            self._try_a_few(known, rows, plain)

    def _allowed(self, rows: int) -> Allowance:
        return self._few if rows <= FEW else self._many

    def _beyond(self, rows: int) -> int:
        """Guesses of a step that may be decided on."""
        return min(self._limit, BEYOND * self._costs.most(rows))

    def _best(
        self, willing: list[Row], rows: int, plain: float, limit: int, *, hoped: bool = False
    ) -> tuple[int, float]:
        """The number of guesses that promises most, and how much faster it would be.

        Args:
            limit: guesses of the step at most.
            hoped: see `Costs.extra`.
        """
        best, promise = 0, 0.0
        gains = gains_of(willing, hoped=hoped) if willing else []
        for place, kept in enumerate(gains):
            guesses = guesses_made(willing, place)
            if guesses > limit:
                break
            speed = self._speed(guesses, kept, rows, plain, hoped)
            if speed > promise:
                best, promise = self._rungs[place], speed
        return best, promise

    def _speed(self, guesses: int, kept: float, rows: int, plain: float, hoped: bool) -> float:
        """How much faster than plain steps those with so many guesses, of which so many are kept,
        are thought to be."""
        extra = self._costs.extra(rows, guesses, hoped=hoped) or 0.0
        extra += self._costs.edges(rows) / self._stretches.usual_run
        return (1.0 + kept / rows) / (1.0 + extra / plain)

    def _go_on(
        self, best: int, willing: list[Row], rows: int, plain: float, promise: float
    ) -> None:
        """Do what is best, and now and then somewhat more."""
        guesses, count = guesses_made(willing, self._rungs.index(best)), len(willing)
        extra = self._costs.extra(rows, guesses) or 0.0
        self._price = extra / guesses * rows / plain
        known = self._costs.timed(rows, guesses) >= FIRST_TRIES
        self._decision = Decision(best, HELD if known else FIRST_TRIES)
        place = self._rungs.index(best) + 2
        more = self._rungs[min(place, len(self._rungs) - 1)]
        due = self._stretches.since_more >= MORE_EVERY
        due = due and self._allowed(rows).tried.wait(0.0, 0.0) == 0.0
        if due and more > best and more * count <= self._limit:
            self._stretches.since_more = 0
            self._decision = Decision(more, 3, usual=plain / promise)

    def _try_a_few(self, known: list[Row], rows: int, plain: float) -> None:
        """Try guesses where none seem to pay, if little enough is lost by it; else none until it
        may be."""
        tries, count = self._costs.tries(rows), min(len(known), FIRST_ROWS)
        saved = _saved(rows, plain)
        _, hope = self._best(known, rows, plain, self._limit, hoped=True)
        k, _ = self._best(known, rows, plain, self._beyond(rows), hoped=True)
        few, many = (self._rungs[known[0].others.rung_of(k)] for k in FIRST_GUESSES)
        if rows <= FEW and (self._turn % 2 or (self._filled and tries == 0.0)):
            k = max(k, many)
        elif tries < 0.9 * FIRST_TRIES:
            k = few if rows <= FEW else 1
        if k == 0 or k * count > self._limit:
            k, count = 1, min(count, self._limit)
        extra = self._costs.extra(rows, k * count)
        cost, steps = 0.5 * saved, 1
        if rows <= FEW:
            cost, steps = plain * SAVED[1] / rows, TRIED_STEPS
        if extra is not None:
            place = known[0].others.rung_of(k)
            kept = gains_of(known[:count])[place]
            cost = max(0.0, extra + self._costs.edges(rows) - plain * kept / rows)
        wait = self._allowed(rows).tried.wait(cost, saved) / plain
        if wait > 0.0 or (rows > FEW and self._step < self._untold):
            self._rest(rows, min(max(round(wait), HELD), RESTED[rows > FEW]))
            return
        least, power, most = HOPELESS
        dear = min(max(1.0, (least / hope) ** power), most) if hope > 0.0 and rows > FEW else 1.0
        self._decision = Decision(k, steps, usual=plain, rows=count, dear=dear)
        self._turn += 1
        self._untold = self._step + HELD  # it may take a step or two until this one is told of


def _saved(rows: int, plain: float) -> float:
    """Seconds that may be lost at once."""
    return plain * SAVED[rows <= FEW]
