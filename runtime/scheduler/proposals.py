"""Which rows of a step get candidates, how many, and whether it can follow one in flight.

Law: candidates take only memory that is to spare. Knows nothing of what they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

from branchline.runtime.core.batch import Int32Array
from branchline.runtime.core.drafting import MAX_GUESSES
from branchline.runtime.core.protocols import Pending
from branchline.runtime.core.request import Request, Status
from branchline.runtime.core.tree import DraftTree
from branchline.runtime.memory.cache_manager import CacheManager
from branchline.runtime.scheduler.candidates import tree_mask
from branchline.runtime.scheduler.draft import Draft
from branchline.runtime.scheduler.drafts import Drafts
from branchline.runtime.scheduler.plan_builder import StepPlan

if TYPE_CHECKING:
    from branchline.runtime.core.protocols import DraftingPending

_AHEAD = 4
"""A row with guesses grows by several ids in a step, and is given so many times the slots ahead."""


class Proposals:
    """Candidates for rows that decode.

    Args:
        drafts: who guesses.
        cache: where their slots are.
        max_running, max_step_tokens: of a step.
        plenty: tokens that are left free for others.
        grow_ahead: slots that a row which needs more is given at once.
    """

    def __init__(
        self,
        drafts: Drafts,
        cache: CacheManager,
        max_running: int,
        max_step_tokens: int,
        plenty: int,
        grow_ahead: int,
    ) -> None:
        self._drafts, self._cache = drafts, cache
        self._max_running, self._max_step_tokens = max_running, max_step_tokens
        self._plenty, self._grow_ahead = plenty, grow_ahead

    def make(self, decoding: Sequence[Request]) -> dict[Request, Draft]:
        """For rows that are part of the next step, none of which is part of one in flight."""
        spare = self._max_step_tokens - sum(request.pending_len for request in decoding)
        spare = min(spare, MAX_GUESSES)
        rows = []
        for request in decoding:
            nodes = self._spare(request, self._drafts.nodes(request, spare // len(decoding)))
            if nodes > 0:
                rows.append((request, nodes))
        there = [row for row in rows if self._drafts.in_step(row[0])]
        here = [row for row in rows if not self._drafts.in_step(row[0])]
        found = self._drafts.reserve(there)
        if here:
            found |= self._drafts.propose(here, self._cache.slot_table.array)
        return found

    def following(
        self, step: StepPlan, running: int, *, waiting: bool
    ) -> dict[Request, Draft] | None:
        """For a step behind one in flight that samples one id of each row or keeps guesses by
        itself, if all there is to do is to go on from there; None = it must be known first.

        Args:
            running: requests that hold a row.
            waiting: others wait for one.
        """
        drafted = step.batch.drafted
        if drafted is None and any(s.draft is not None or not s.sample for s in step.segments):
            return None
        if drafted is not None and not drafted.accepts:
            return None
        if running != len(step.segments) or (waiting and running < self._max_running):
            return None
        spare = min(self._max_step_tokens - len(step.segments), MAX_GUESSES)
        rows, grown = [], {}
        for segment in step.segments:
            request, draft = segment.request, segment.draft
            going_on = request.finish is None and request.status is Status.DECODE
            if not going_on or request.inflight != 1 or not (draft is None or draft.in_place):
                return None
            if draft is not None and draft.left:
                return None
            growth = grown[request] = 1 if draft is None else draft.height + 1
            nodes = self._drafts.nodes(request, spare // len(step.segments), growth)
            if nodes == 0 and draft is None and request.matcher is None:
                continue  # what a constraint forces might leave no room for the others
            if not (self._drafts.in_step(request) and self._drafts.kept_there(request)):
                return None
            if nodes == 0 or self._spare(request, growth + nodes) < growth + nodes:
                return None
            rows.append((request, nodes))
        return self._drafts.reserve(rows, grown)

    def _spare(self, request: Request, count: int) -> int:
        """Give a row slots behind its last id, `count` or as many as leave enough to others; how
        many it has there."""
        cache, table = self._cache, self._cache.slot_table
        held = table.held[request.row]
        spare = cache.free_tokens + cache.evictable_tokens - self._plenty
        room = min(table.max_context, max(held, held + spare)) - request.length
        count = min(count, room)
        end = request.length + count
        if count <= 0 or end <= held:
            return count
        # some more than are needed now: a device is told of changes, which costs more than they do
        ahead = min(end + _AHEAD * self._grow_ahead - 1, table.max_context)
        plenty = self._grow_ahead > 1 and spare >= ahead - held
        if plenty and cache.extend(request.row, held, ahead):
            return count
        return count if cache.extend(request.row, held, end) else 0


def learn(
    plan: StepPlan,
    trees: Sequence[DraftTree],
    drafts: Drafts | None,
    broke: Callable[[Request, Exception], None],
) -> None:
    """The worker has made a step's candidates, of each of its `drafted` rows.

    Args:
        broke: told of a request that cannot go on with them.
    """
    drafted = plan.batch.drafted
    if drafted is None or drafts is None:
        return
    for index, tree in zip(drafted.rows.tolist(), trees, strict=True):
        segment = plan.segments[index]
        request, draft = segment.request, segment.draft
        if draft is None or not draft.levels or request.finish is not None:
            continue
        try:
            if draft.follows:
                segment.start = request.computed_len  # the step before has been committed
            known = request.ids[segment.start + segment.count : request.length]
            segment.draft = drafts.learn(request, draft, tree, known)
        except Exception as error:
            broke(request, error)


def learn_early(
    plan: StepPlan,
    pending: Pending,
    drafts: Drafts | None,
    broke: Callable[[Request, Exception], None],
) -> None:
    """`learn` while the step runs, once the step before it has been committed: what is sampled
    depends on its candidates, on what a constraint says of them or on what lies between."""
    try:
        trees = cast("DraftingPending", pending).trees()  # to ask whether it is one takes 30 µs
    except Exception:  # the step failed, as its result will say
        return
    drafted = plan.batch.drafted
    learn(plan, trees, drafts, broke)
    if drafted is None or not drafted.accepts:  # else the worker has all that it needs
        plan.batch.tree = tree_mask(plan.segments)


def tell(plan: StepPlan, matched: Int32Array | None, drafts: Drafts | None) -> None:
    """The worker has looked a step's rows up; see `ForwardOutput.matched`."""
    if matched is not None and drafts is not None and drafts.device_matches is not None:
        tried = plan.decision is not None and plan.decision.usual is not None
        drafts.device_matches.observe(plan.segments, matched, tried=tried)
