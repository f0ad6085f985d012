"""What may be lost by guessing, and what steps with guesses brought that were thought to pay.

Law: batches of one kind of size do not spend what others may lose; each may lose shares of all the
time. Knows nothing of decisions.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from branchline.runtime.scheduler.step_costs import Budget

TRIED = 0.01
"""Share of the time that may be lost by trying what does not seem to pay."""

ASKED = 0.01
"""Share of the time that may be lost by asking rows of which none promises anything."""

COOL = (16, 1024)
"""Steps for which a row that guesses do not help beside others is left alone: at first, and at
most. So many are all rows, where what was expected of guesses did not come."""


@dataclass(slots=True)
class Outcome:
    """What steps with guesses that were thought to pay brought lately.

    Attributes:
        plain: seconds that plain steps would have taken for the same ids.
        took: seconds that they took.
        steps: about how many of them.
        until: the step up to which none are made, since they took longer.
        patience: steps that none are made for next.
    """

    plain: float = 0.0
    took: float = 0.0
    steps: float = 0.0
    until: int = 0
    patience: int = COOL[0]

    def add(self, plain: float, took: float) -> None:
        """One more step."""
        fade = 0.97
        self.plain, self.took = fade * self.plain + plain, fade * self.took + took
        self.steps = fade * self.steps + 1.0


@dataclass(slots=True)
class Allowance:
    """Of batches of one kind of size.

    Attributes:
        tried: what may be lost by tries.
        trusted: by guesses that were thought to pay.
        asked: by asking in vain.
        outcome: of guesses that were thought to pay.
    """

    tried: Budget = field(default_factory=lambda: Budget(TRIED))
    trusted: Budget = field(default_factory=lambda: Budget(TRIED))
    asked: Budget = field(default_factory=lambda: Budget(ASKED))
    outcome: Outcome = field(default_factory=Outcome)

    def earn(self, seconds: float, saved: float, asked: float, *, first: float) -> None:
        """A step of such a batch took so long; see `Budget.earn`.

        Args:
            saved: limit of what may be lost by guesses.
            asked: limit of what may be lost by asking.
        """
        self.tried.earn(seconds, saved, first=first)
        self.trusted.earn(seconds, saved, first=first)
        self.asked.earn(seconds, asked)

    def passes(self, seconds: float) -> None:
        """A step of another batch took so long."""
        for budget in (self.tried, self.trusted, self.asked):
            budget.passes(seconds)
