"""Whether steps with constrained rows overlap the steps before them.

Not overlapped, step N is committed before N + 1 is planned: what N's ids force runs as part of
N + 1, and the worker rests while the host commits, plans and queues. Overlapped, N + 1 has begun by
then: it samples the first forced id, which is all its mask allows, and the rest runs with N + 2. So
a row takes one step more for each run of forced ids, and every step takes what the slower of worker
and host takes, instead of their sum.
"""

from __future__ import annotations

_WEIGHT = 0.2
"""Of the newest measurement in a mean."""

_LEARN = 4
"""Steps that do not overlap, before the first that does: they show what both ways would take."""

_PROBE = 64
"""Of so many steps that overlap one does not: only these show what the worker alone takes."""

_RUN_WEIGHT = 0.02
"""Of the newest row in the mean of forced runs: an output has some ten of them."""

_FORGET = 0.01
"""Of what overlapping steps have shown, in each step that does not overlap."""


class ConstrainedOverlap:
    """Chooses by the clock: overlap where a step times (1 + forced runs of a row in a step) is
    shorter then. What a step would take is reckoned from those that do not overlap; how far those
    that do are off is kept as a factor."""

    def __init__(self) -> None:
        self._apart = self._ahead = 0.0
        self._off = 1.0
        self._measured = 0
        self._overlapped = 0
        self._runs = 0.0

    def due(self) -> bool:
        """Whether the next step may be planned before the one in flight is committed."""
        if self._measured < _LEARN:
            return False
        if self._ahead * self._off * (1.0 + self._runs) >= self._apart:
            return False
        self._overlapped += 1
        return self._overlapped % _PROBE > 0

    def took_token(self, *, forces: bool) -> None:
        """A constrained row has an id that was not forced; more are behind it, or none."""
        self._runs += _RUN_WEIGHT * (forces - self._runs)

    def measured(self, turn_s: float, busy_s: float, step_s: float, *, overlapped: bool) -> None:
        """A turn of the loop with constrained rows.

        Args:
            turn_s: seconds from the end of the turn before to the end of this one.
            busy_s: what the host did in it, one thing after the other.
            step_s: seconds from when the step committed in it was queued until its ids were there.
            overlapped: the turn's own step was planned before that.
        """
        if overlapped:
            if self._ahead:
                self._off += _WEIGHT * (turn_s / self._ahead - self._off)
            return
        weight = _WEIGHT if self._measured else 1.0
        self._apart += weight * (turn_s - self._apart)
        self._ahead += weight * (max(step_s, busy_s) - self._ahead)
        self._off += _FORGET * (1.0 - self._off)
        self._measured += 1
