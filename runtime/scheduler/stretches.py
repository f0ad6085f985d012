"""Stretches of steps with guesses and of plain ones, and what of a stretch shows in its neighbours.

Law: all time of a run is the run's. A step with guesses is planned and queued while the step before
it runs or is committed, so that what this takes shows in the time of that one, which is no measure
of plain steps then. Knows nothing of what is decided.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from branchline.runtime.scheduler.acceptance import Mean

LOOKED_AT = 16
"""Of so many plain steps of a large batch, one is timed."""

_RUN = 16.0
"""Guessed steps of a run, as long as nothing is known of runs."""


@dataclass(slots=True)
class Stretches:
    """What the steps were that have been told of, and the one that is planned.

    Attributes:
        run: guessed steps one behind the other up to the last step; 0 = it was a plain one.
        since_plain: steps since plain ones followed each other.
        since_more: steps since more guesses were tried.
        early: seconds by which the last plain step took longer, since one with guesses was queued
            meanwhile.
    """

    run: int = 0
    since_plain: int = 0
    since_more: int = 0
    early: float = 0.0
    _guessed: bool = False
    _given: bool = False
    _ends: bool = False  # a run that no row goes on with
    _runs: Mean = field(default_factory=Mean)
    _plain_steps: int = 0
    _unseen: float = 0.0

    @property
    def usual_run(self) -> float:
        """Guessed steps of a run, of those that were not ended by a decision."""
        return self._runs.value if self._runs.weight else _RUN

    def plans(self, *, given: bool, promised: bool = True) -> None:
        """The next step is planned.

        Args:
            given: rows may have guesses in it.
            promised: some row had something to guess.
        """
        self._given = given
        self._ends = not given and (self._ends or not promised)

    def enters(self, *, guessed: bool) -> tuple[bool, bool]:
        """A step is over, guessed or plain: whether the one before was of the other kind, and
        whether this is a plain one among plain ones behind which one with guesses was queued."""
        first, self._guessed = guessed != self._guessed, guessed
        queued = self._given and not guessed and not first
        self._given = False
        return first, queued

    def passes(self, seconds: float, *, looked_at: bool) -> bool:
        """A plain step among plain ones took so long: whether it need not be looked at by itself.

        Args:
            looked_at: all are.
        """
        self._plain_steps += 1
        if looked_at or self._plain_steps % LOOKED_AT == 0:
            return False
        self._unseen += seconds
        self.since_more += 1
        return True

    def passed(self, seconds: float) -> float:
        """Seconds since a step was looked at, this one's included."""
        passed, self._unseen = seconds + self._unseen, 0.0
        return passed

    def counts(self, guesses: int, *, first: bool, decided: bool) -> None:
        """A step that was looked at had so many guesses.

        Args:
            decided: to have none was decided, whatever the rows have.
        """
        if guesses:
            self.run += 1
        elif self.run:
            if self._ends or not decided:
                self._runs.add(float(self.run), 0.8)
            self.run, self._ends = 0, False
        self.since_plain = self.since_plain + 1 if self._guessed or first else 0
        self.since_more += 1
