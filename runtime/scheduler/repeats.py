"""Plans that are the one before once more: rows that guess and merely go on.

Where a row begins is known to the worker alone then (`DraftedRows.follows`), so that of two such
steps one behind the other nothing differs but new slots. Knows nothing of how plans are built.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from branchline.runtime.core.batch import SlotWrites
from branchline.runtime.core.request import Request

if TYPE_CHECKING:
    from branchline.runtime.scheduler.plan_builder import Segment, StepPlan


class _Goes(NamedTuple):
    """A segment that goes on, and all that its part of a plan depends on."""

    request: Request
    tokens: int
    asked: int
    levels: int


class Repeats:
    """Remembers the last plan, if all of its rows went on where the step before ended."""

    def __init__(self) -> None:
        self._plan: StepPlan | None = None
        self._goes: list[_Goes] = []

    def of(
        self, segments: list[Segment], changes: Callable[[], SlotWrites | None]
    ) -> StepPlan | None:
        """The plan of these segments, if they are the last plan's; it begins no rows.

        Args:
            changes: takes those of the slot table; called if there is such a plan.
        """
        last = self._plan
        if last is None or _going(segments) != self._goes:
            return None
        batch, slots = last.batch, changes()
        tree = batch.tree
        if tree is not None and tree.drafted is not None and not tree.drafted.repeats:
            tree = replace(tree, drafted=replace(tree.drafted, repeats=True))
        if tree is not batch.tree or slots is not batch.slot_writes:
            batch = replace(batch, slot_writes=slots, tree=tree)
        self._plan = type(last)(batch, segments, [], guesses=last.guesses, steady=last.steady)
        return self._plan

    def built(self, plan: StepPlan) -> None:
        """Another plan has been built."""
        self._goes = _going(plan.segments)
        free = plan.batch.copies is None and not plan.batch.inits
        self._plan = plan if self._goes and free else None


def _going(segments: Sequence[Segment]) -> list[_Goes]:
    """All segments, if there is nothing that the worker would have to be told of them; else
    none."""
    found = []
    for segment in segments:
        draft, request = segment.draft, segment.request
        if draft is None or not (draft.follows and draft.in_place):
            return []
        found.append(_Goes(request, segment.count, draft.asked, draft.levels))
    return found
