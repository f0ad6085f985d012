"""Chooses what runs in the next step: decode rows first, then prompts in chunks, mixed.

Law: a step never needs memory that is not there. A running row that cannot grow sits the step out;
once no step is in flight, the youngest requests of the lowest priority are retracted (their memory
is released, what they computed stays in the cache while it can) until it can. Admission leaves room
for what running requests may still write; guesses take only memory that is to spare. A request
whose adapter is in no slot of the device lets others pass while it is brought there, but not for
ever. Knows nothing of sampling, grammars or text.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import numpy as np

from branchline.runtime.core.batch import RowInit
from branchline.runtime.core.request import Request, Status
from branchline.runtime.core.tree import TreeGroup
from branchline.runtime.memory.cache_manager import CacheManager
from branchline.runtime.memory.prefix_cache import CacheHandle
from branchline.runtime.memory.types import Slots
from branchline.runtime.scheduler.adapters import Adapters, NoAdapters
from branchline.runtime.scheduler.draft import Draft
from branchline.runtime.scheduler.drafts import Drafts
from branchline.runtime.scheduler.plan_builder import Segment, StepPlan
from branchline.runtime.scheduler.prefixes import PrefixesInFlight
from branchline.runtime.scheduler.proposals import Proposals
from branchline.runtime.scheduler.reserve import Reserve
from branchline.runtime.scheduler.stats import SchedulerStats
from branchline.runtime.scheduler.waiting_queue import WaitingQueue

PROMPT_SCORE_CHUNK = 128
"""Chunk of a prompt whose log-probabilities are wanted: each of its tokens needs a logit row."""

MAX_CANDIDATES = 128
"""Waiting requests that one step looks at; held-back ones count."""


# size: Planner: rows, memory and tokens of a step are weighed against each other
class Planner:
    """Owns the running set.

    Args:
        max_running: rows in one step at most.
        max_step_tokens: tokens in one step at most.
        started: told of each request when it is first part of a step.
        grow_ahead: slots that a row which needs more is given at once while memory is plentiful:
            fewer calls, and fewer changes of the slot table to send to a device.
        drafts: who guesses what decoding rows go on with; None = nobody.
        adapters: that requests may have.

    Attributes:
        running: requests that hold a row, oldest admission first.
        constrained: how many of them have a matcher.
    """

    def __init__(
        self,
        cache: CacheManager,
        waiting: WaitingQueue,
        stats: SchedulerStats,
        *,
        max_running: int,
        max_step_tokens: int,
        started: Callable[[Request], None],
        grow_ahead: int = 1,
        drafts: Drafts | None = None,
        adapters: Adapters | None = None,
    ) -> None:
        self._started = started
        self.drafts = drafts
        plenty = 2 * grow_ahead * max_running
        self._proposals = None
        if drafts is not None:
            limits = max_running, max_step_tokens, plenty, grow_ahead
            self._proposals = Proposals(drafts, cache, *limits)
        self._copies: list[tuple[Slots, Slots]] = []
        self._adapters = adapters or NoAdapters()
        self.running: dict[Request, None] = {}
        self._cache = cache
        cache.on_inserted = waiting.inserted
        self._waiting = waiting
        self._stats = stats
        self._max_running = max_running
        self._max_step_tokens = max_step_tokens
        self._grow_ahead = grow_ahead
        self._plenty = plenty
        self._reserve = Reserve(cache)
        self.prefixes = PrefixesInFlight()
        self.constrained = 0

    def drafting(self) -> bool:
        """Whether the next step had better wait for the one before, to run guesses."""
        if self.drafts is None:
            return False
        if not self.constrained and self.drafts.goes_on_resting(len(self.running)):
            return False  # as nearly always in a large batch
        decoding = [request for request in self.running if request.status is Status.DECODE]
        return self.drafts.due(decoding, constrained=self.constrained > 0)

    def plan(
        self, *, draft: bool = False, following: dict[Request, Draft] | None = None
    ) -> tuple[list[Segment], list[RowInit]]:
        """Segments of the next step and rows to fill first; empty when there is nothing to do.

        Args:
            draft: no step is in flight, so that rows may be guessed for.
            following: of `following`; the step has nothing else then.
        """
        segments: list[Segment] = []
        inits: list[RowInit] = []
        if following is not None:
            self._decode(segments, following)
            return segments, inits
        budget = self._decode(segments, self._propose() if draft else {})
        budget = self._continue_prefill(segments, budget)
        if budget > 0:
            self._admit(segments, inits, budget)
        return segments, inits

    def take_copies(self) -> tuple[Slots, Slots] | None:
        """Slots to copy, all at once, before the next step: (src, dst)."""
        if not self._copies:
            return None
        src, dst = (np.concatenate(part) for part in zip(*self._copies, strict=True))
        self._copies.clear()
        return src, dst

    def keep(self, request: Request, base: int, path: list[int], *, in_place: bool) -> None:
        """Keep some of the guesses, of which i lies at position base + i, as computed tokens;
        in_place: they have been moved to base, base + 1, … by now."""
        if not in_place:
            src, dst = self._cache.keep_path(request.row, base, [base + node for node in path])
            if len(src):
                self._copies.append((src, dst))
        request.computed_len = base + len(path)
        request.planned_len = request.computed_len + request.inflight  # a token in each of them

    def following(self, step: StepPlan) -> dict[Request, Draft] | None:
        """Candidates for a step behind one in flight, see `Proposals.following`."""
        if self._proposals is None:
            return None
        return self._proposals.following(step, len(self.running), waiting=len(self._waiting) > 0)

    # -- running rows ----------------------------------------------------------------------------

    def _propose(self) -> dict[Request, Draft]:
        if self._proposals is None:
            return {}
        return self._proposals.make([r for r in self.running if _wants_decode(r)])

    def _decode(self, segments: list[Segment], drafts: dict[Request, Draft]) -> int:
        budget = self._max_step_tokens
        held, decode = self._cache.slot_table.held, Status.DECODE
        for request in list(self.running):
            start, end = request.planned_len, request.sampled_len
            if (  # as nearly always
                start + 1 == end < request.max_len
                and request.status is decode
                and request.finish is None
                and end <= held[request.row]
                and budget > 0
                and not drafts
            ):
                segments.append(Segment(request, start, 1, True))
                request.planned_len, request.sampled_len = end, end + 1
                request.inflight += 1
                budget -= 1
                continue
            if not _wants_decode(request) or budget == 0:
                continue
            draft = drafts.get(request)
            # More than 1 after forced tokens; where the row goes on is not known yet if it follows.
            pending = 1 if draft is not None and draft.follows else end - start
            count = min(pending, budget)
            end = start + count
            if end > held[request.row] and not self._make_room(request, end):
                continue
            sample = count == pending
            if draft is not None and not (sample and count + len(draft) <= budget):
                draft = None
            segments.append(Segment(request, start, count, sample, draft=draft))
            _advance(request, count, sample=sample)
            budget -= count if draft is None else count + len(draft)
        return budget

    def _continue_prefill(self, segments: list[Segment], budget: int) -> int:
        if all(request.status is Status.DECODE for request in self.running):
            return budget
        for request in list(self.running):
            if budget <= 0:
                break
            if request in self.running and _wants_prefill(request):
                budget -= self._add_chunk(request, segments, budget)
        return budget

    def _add_chunk(self, request: Request, segments: list[Segment], budget: int) -> int:
        """Plan the next chunk of a prompt; returns its tokens (0 when it must wait)."""
        start = request.planned_len
        count = min(request.pending_len, budget)
        score_prompt = _scores_prompt(request)
        if score_prompt:
            count = min(count, PROMPT_SCORE_CHUNK)
        last = count == request.pending_len
        pool = request.pool
        if last and request.score is not None:
            group = request.score.groups[request.score.next_group]
            if count + len(group.tree) <= budget:
                return self._add_group(request, segments, count, group)
            count, last = count - 1, False
            if count == 0:
                return 0
        if not self._make_room(request, start + count):
            return 0
        sample = last and request.generates
        hidden = 0 if pool is None else pool.wanted(count, last=last)
        segments.append(
            Segment(request, start, count, sample, score_prompt=score_prompt, hidden=hidden)
        )
        _advance(request, count, sample=sample)
        if score_prompt:
            request.progress.prompt_scored = start + count
        return count

    def _add_group(
        self, request: Request, segments: list[Segment], count: int, group: TreeGroup
    ) -> int:
        """Plan the end of a score request's prompt with a group of choices behind it."""
        assert request.score is not None
        size = count + len(group.tree)
        if not self._make_room(request, request.planned_len + size):
            return 0
        segments.append(Segment(request, request.planned_len, count, sample=False, group=group))
        request.score.next_group += 1
        _advance(request, count, sample=False)
        return size

    def _make_room(self, request: Request, new_len: int) -> bool:
        """Slots for positions up to `new_len`; False when `request` cannot run in this step."""
        current = self._cache.slot_table.held[request.row]
        if new_len <= current:
            return True
        if self._grow_ahead > 1:
            # where it ends differs from row to row, so that rows of one step do not all grow in one
            ahead = new_len + (request.row - new_len) % self._grow_ahead
            ahead = min(ahead, request.max_len)
            free = self._cache.free_tokens + self._cache.evictable_tokens
            if ahead > new_len and free >= ahead - current + self._plenty:
                return self._cache.extend(request.row, current, ahead)
        while not self._cache.extend(request.row, current, new_len):
            if self._cache.break_leases(new_len - current):
                continue
            if any(other.inflight for other in self.running):
                return False
            victim = _youngest(self.running)
            self.retract(victim)
            if victim is request:
                return False
        return True

    def retract(self, request: Request) -> None:
        """Take a running request's memory; it resumes later where it was, with the same output."""
        self.leave(request, min(request.computed_len, request.length), insert=True)
        request.planned_len = request.computed_len = 0
        request.sampled_len = request.length
        request.progress.retractions += 1
        if request.progress.prompt_scored < request.prompt_len - 1:
            request.progress.prompt_scored = 0
            request.progress.prompt_logprobs.clear()
        if request.pool is not None:
            request.pool.restart()
        request.status = Status.WAITING
        self._stats.retractions += 1
        self._reserve.retracted()
        self._waiting.add_first(request)

    def withdraw(self, segments: list[Segment], copies: tuple[Slots, Slots] | None) -> None:
        """A planned step will never run, and none is in flight: what is in it is as if it were not.
        Until `start_over`, running requests have slots that they do not know of.
        """
        if copies is not None:
            self._copies.insert(0, copies)
        for segment in segments:
            request = segment.request
            request.inflight -= 1
            if segment.group is not None and request.score is not None:
                request.score.next_group -= 1
            if segment.score_prompt:
                request.progress.prompt_scored = 0  # starting over reads all of it again

    def start_over(self) -> None:
        """Retract all that runs, oldest first in the queue."""
        for request in reversed([*self.running]):
            if request.finish is None:
                self.retract(request)

    def leave(self, request: Request, computed_len: int, *, insert: bool) -> None:
        """Release a running request's row and memory; its computed prefix stays cached."""
        namespace = request.source.namespace
        ids = request.ids[: request.length]
        handle = request.handle
        assert isinstance(handle, CacheHandle)
        self._cache.release(
            request.row,
            ids,
            computed_len,
            handle,
            namespace,
            insert=insert,
            priority=request.source.priority,
        )
        self.prefixes.discard(request)
        self.running.pop(request, None)
        if request.adapter is not None:
            self._adapters.leave(request.adapter)
        self.constrained -= request.matcher is not None
        request.row, request.handle = -1, None

    def share(self, request: Request, computed_len: int) -> None:
        """Put the computed part of a running request's prompt into the cache."""
        handle = request.handle
        assert isinstance(handle, CacheHandle)
        namespace = request.source.namespace
        ids = request.ids[: request.length]
        request.handle = self._cache.commit(
            request.row, ids, computed_len, handle, namespace, priority=request.source.priority
        )
        if computed_len >= request.prompt_len - 1:
            self.prefixes.discard(request)

    # -- admission -------------------------------------------------------------------------------

    def _admit(self, segments: list[Segment], inits: list[RowInit], budget: int) -> None:
        if len(self.running) >= self._max_running or not len(self._waiting):
            return
        reserved = self._reserve.of_all(self.running)
        starved = False
        for looked_at, request in enumerate(self._waiting.candidates()):
            if budget <= 0 or len(self.running) >= self._max_running or looked_at > MAX_CANDIDATES:
                break
            if request.adapter is not None:
                urgent = not self.running or self._waiting.is_overdue(request)
                if starved or not self._adapters.ready(request.adapter, urgent=urgent):
                    # Once one that is overdue waits for a slot, nobody else takes one.
                    starved = starved or self._waiting.is_overdue(request)
                    continue
            whole = _computes_all(request)
            limit = 0 if whole else request.length - 1
            match = self._cache.match(request.ids[:limit], request.source.namespace)
            if not whole and self.prefixes.should_wait(request, match.cached_len):
                self._stats.held_back += 1
                continue
            self._cache.lock(match.handle)
            if not self._reserve.fits(request, match.cached_len, reserved, alone=not self.running):
                self._cache.unlock(match.handle)
                break
            row = self._cache.allocate_row()
            if row is None:
                self._cache.unlock(match.handle)
                break
            self._enter(request, row, match.handle, match.cached_len)
            inits.append(RowInit(row, 0, request.ids[: request.length].copy()))
            budget -= self._add_chunk(request, segments, budget)
            reserved += self._reserve.of(request)

    def _enter(self, request: Request, row: int, handle: CacheHandle, cached_len: int) -> None:
        self._cache.attach(row, handle)
        self._waiting.admitted(request)
        self.running[request] = None
        if request.adapter is not None:
            self._adapters.enter(request.adapter)
        self.constrained += request.matcher is not None
        request.row, request.handle = row, handle
        request.planned_len = request.computed_len = cached_len
        request.sampled_len = request.length
        request.status = Status.PREFILL
        if request.progress.retractions == 0:
            request.progress.cached_tokens = cached_len
            request.times.admitted = time.monotonic()
            self._started(request)
        if request.pending_len > 1:
            self.prefixes.add(request)


def _youngest(running: Iterable[Request]) -> Request:
    """Of the lowest priority."""
    return min(running, key=lambda r: (r.source.priority, -r.progress.arrival))


def _wants_decode(request: Request) -> bool:
    return (
        request.status is Status.DECODE  # so that it generates
        and request.finish is None
        and request.planned_len < request.sampled_len < request.max_len
    )


def _wants_prefill(request: Request) -> bool:
    if request.status is Status.DECODE or request.finish is not None or request.pending_len == 0:
        return False
    return not request.generates or request.status is Status.PREFILL


def _scores_prompt(request: Request) -> bool:
    """True while log-probabilities of the prompt are wanted and not all read."""
    return (
        request.sampling.prompt_logprobs is not None
        and request.progress.prompt_scored < request.prompt_len - 1
    )


def _computes_all(request: Request) -> bool:
    """True when something is read at every token of the prompt: a cached one would bring nothing to
    read, and there is no use in waiting for one."""
    return _scores_prompt(request) or (request.pool is not None and request.pool.needs_all)


def _advance(request: Request, count: int, *, sample: bool) -> None:
    request.planned_len += count
    request.inflight += 1
    if sample:
        request.sampled_len += 1
        request.status = Status.DECODE
