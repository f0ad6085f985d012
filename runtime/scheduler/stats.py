"""Counters of the scheduler, cumulative since start."""

from __future__ import annotations

import time
from dataclasses import dataclass

TIMED = 17
"""Of so many turns of the loop, or requests, the phases of one are timed: asking for a thread's
time is a system call, which takes up to 50 us, and a step has seven of them. No power of two, in
which steps of a kind may come."""


class PhaseClock:
    """CPU seconds of the calling thread, for differences within a turn.

    Differences are 0 in most turns and count for those in the others.
    """

    def __init__(self) -> None:
        self._turns = 0

    def turn(self) -> float:
        """A turn of the loop begins, or a request comes; what `read` gives then."""
        self._turns += 1
        return self.read()

    def read(self) -> float:
        """Now; in most turns 0."""
        return TIMED * time.thread_time() if self._turns % TIMED == 0 else 0.0


@dataclass(slots=True)
class SchedulerStats:
    """What the scheduler has done.

    Attributes:
        steps: steps given to the worker.
        step_tokens: tokens of those steps.
        sampled_tokens: ids kept as output.
        drafts: times a row's guesses were checked.
        drafted_tokens, accepted_tokens: guesses that were run, and of them those kept as output.
        finished, aborted, failed: requests by how they ended.
        retractions: times a running request gave its memory back.
        held_back: times a request waited for a prefix in flight.
        intake_s, plan_s, launch_s, mask_s, commit_s: CPU seconds of the loop thread in each phase,
            as `PhaseClock` reads them
            (commit includes what readers do with the results, launch is handing steps over).
        wait_s: seconds the loop thread waited for the worker.
    """

    steps: int = 0
    step_tokens: int = 0
    sampled_tokens: int = 0
    drafts: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    submitted: int = 0
    finished: int = 0
    aborted: int = 0
    failed: int = 0
    retractions: int = 0
    held_back: int = 0
    audit_repairs: int = 0
    intake_s: float = 0.0
    plan_s: float = 0.0
    launch_s: float = 0.0
    mask_s: float = 0.0
    wait_s: float = 0.0
    commit_s: float = 0.0
