"""What steps with guesses brought that were thought to pay. Knows nothing of decisions."""

from __future__ import annotations

from dataclasses import dataclass

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
