"""The loop's body: take requests in, plan a step, hand it out, take the one before back.

Overlap: step N + 1 is planned and given to the worker while N computes; where no row is constrained
it is sampled at once, before anyone has looked at N. Else N is committed first and the masks of
N + 1 are filled: they need N's ids, the forward does not. While a constrained request runs, N may
be committed before N + 1 is planned: what N's ids force then joins N + 1, and masks fill while it
computes. Which of the two takes less time is measured (`constrained_overlap`). Around steps with
guesses (`drafts`) N is always committed first: they
begin where the last ids are known and end anywhere; unless the worker makes and keeps the guesses
itself, and nothing but the same rows is to go on: then N + 1 begins where the worker knows that N
has ended. All calls are made on one thread, the loop
thread. Knows nothing of text, threads or sockets.
"""

from __future__ import annotations

import heapq
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from branchline.runtime.config.sections import SchedulerSection
from branchline.runtime.core.adapters import AdapterVersion
from branchline.runtime.core.bounds import check_queue, remaining
from branchline.runtime.core.messages import EngineRequest
from branchline.runtime.core.outputs import FinishReason
from branchline.runtime.core.protocols import MaskSource, Pending, TokenMatcher, Worker
from branchline.runtime.core.request import Request
from branchline.runtime.core.sampling_params import MAX_N, Constraint
from branchline.runtime.core.section import Section
from branchline.runtime.errors import BackendError, BranchlineError
from branchline.runtime.memory.cache_manager import CacheManager
from branchline.runtime.memory.types import Slots
from branchline.runtime.scheduler.adapters import Adapters, NoAdapters
from branchline.runtime.scheduler.commit import Committer, Outbox
from branchline.runtime.scheduler.constrained_overlap import ConstrainedOverlap
from branchline.runtime.scheduler.draft import Draft
from branchline.runtime.scheduler.drafts import Drafts
from branchline.runtime.scheduler.intake import Intake
from branchline.runtime.scheduler.plan_builder import PlanBuilder, Segment, StepPlan
from branchline.runtime.scheduler.planner import Planner
from branchline.runtime.scheduler.proposals import learn_early
from branchline.runtime.scheduler.stats import PhaseClock, SchedulerStats
from branchline.runtime.scheduler.waiting_queue import WaitingQueue

if TYPE_CHECKING:
    from branchline.runtime.core.protocols import Bitmask

logger = logging.getLogger(__name__)


class Grammars(Protocol):
    """Constraints to matchers to masks (`grammar.service.GrammarService`)."""

    def request(
        self,
        constraint: Constraint,
        ready: Callable[[TokenMatcher | BranchlineError], None],
        section: Section | None = None,
    ) -> None: ...

    def fill(self, matchers: Sequence[MaskSource], count: int) -> Bitmask | None: ...

    def failure(self, matcher: TokenMatcher) -> str: ...

    def explain(self, constraint: Constraint) -> str: ...

    def prepare(self) -> None: ...


# size: Scheduler: what one turn of the loop does, in its order
class Scheduler:
    """Continuous batching over one worker.

    Args:
        max_step_tokens: tokens of one step at most.
        max_running: sequences computed in one step at most; no more than there are rows.
        grow_ahead: slots that a decoding row is given at once, see `Planner`.
        constrained_overlap: whether steps with constrained rows overlap; None = they do not.
        grammars: matchers and masks.
        call_soon: posts to the loop thread, for matchers that come from another one.
        drafts: who guesses what rows go on with, so that a step can yield several ids of a row.
        adapters: that requests may name; the same as the intake's.
    """

    def __init__(
        self,
        settings: SchedulerSection,
        cache: CacheManager,
        worker: Worker,
        outbox: Outbox,
        intake: Intake,
        *,
        max_step_tokens: int,
        max_running: int,
        eos_ids: frozenset[int],
        grammars: Grammars,
        call_soon: Callable[[Callable[[], None]], None],
        grow_ahead: int = 1,
        constrained_overlap: ConstrainedOverlap | None = None,
        drafts: Drafts | None = None,
        adapters: Adapters | None = None,
    ) -> None:
        self.stats = SchedulerStats()
        self._clock, self._intake_clock = PhaseClock(), PhaseClock()
        self.cache = cache
        self.adapters = adapters or NoAdapters()
        self.adapters.connect(self._adapter_failed)
        self._settings = settings
        self._worker = worker
        self._intake = intake
        self._grammars = grammars
        self._call_soon = call_soon
        self._overlap = constrained_overlap
        self.waiting = WaitingQueue(
            settings.policy, cache.match_len, settings.max_skips, lambda: cache.losses
        )
        self._planner = Planner(
            cache,
            self.waiting,
            self.stats,
            max_running=max_running,
            max_step_tokens=max_step_tokens,
            started=outbox.started,
            grow_ahead=grow_ahead,
            drafts=drafts,
            adapters=self.adapters,
        )
        self._committer = Committer(
            self._planner, outbox, self.stats, eos_ids, grammars.failure, constrained_overlap
        )
        self._builder = PlanBuilder(
            cache.slot_table,
            _suppress_ids(eos_ids),
            linked=drafts is not None and drafts.linked,
        )
        self._drafts = drafts
        self._committed: float | None = None  # when the last step of a busy stretch was
        self._idle_s = 0.0  # seconds the loop thread had nothing to do
        self._turn_end: tuple[float | None, float] = None, 0.0  # and `_idle_s` then
        self._step_s = 0.0  # from queueing the step committed last until its ids were there
        self._inflight: deque[tuple[StepPlan, Pending]] = deque()
        self._requests: dict[str, Request] = {}
        self._deadlines: list[tuple[float, str]] = []

    # -- from outside ----------------------------------------------------------------------------

    def submit(self, source: EngineRequest) -> list[Request]:
        """Queue a request (n records for n outputs).

        Raises:
            InvalidRequest: it cannot be run.
            QueueFull: too many wait.
        """
        start = self._intake_clock.turn()
        check_queue(len(self._requests), self._settings.max_queued_requests)
        if source.id in self._requests:
            raise BackendError("a request with this id is running", value=source.id)
        requests = self._intake.make(source)
        deadline = remaining(source.deadline, self._settings.default_deadline_s)
        for request in requests:
            self.stats.submitted += 1
            self._requests[request.id] = request
            if deadline is not None:
                heapq.heappush(self._deadlines, (deadline, request.id))
            self._admit_or_compile(request)
        self.stats.intake_s += self._intake_clock.read() - start
        return requests

    def abort(self, request_id: str, reason: FinishReason = "abort") -> None:
        """End a request (and its siblings `id#i`); ids that are not known are ignored."""
        self.end_one(request_id, reason)
        for index in range(1, MAX_N):  # some may have ended before others
            self.end_one(f"{request_id}#{index}", reason)

    def end_one(self, request_id: str, reason: FinishReason) -> None:
        """End one sequence alone; an id that is not known is ignored."""
        request = self._requests.get(request_id)
        if request is not None:
            self._end(request, reason)

    def forget(self, request: Request) -> None:
        """The outbox has sent the request's end."""
        if self._requests.pop(request.id, None) is not None and request.adapter is not None:
            self.adapters.close(request.adapter)

    def has(self, request_id: str) -> bool:
        """Whether a sequence of this name waits, compiles or runs."""
        return request_id in self._requests

    @property
    def num_running(self) -> int:
        """Requests that hold a row."""
        return len(self._planner.running)

    @property
    def num_unfinished(self) -> int:
        """Requests that wait, compile or run."""
        return len(self._requests)

    @property
    def next_deadline(self) -> float | None:
        """`time.monotonic()` of the next deadline."""
        return self._deadlines[0][0] if self._deadlines else None

    # -- one turn of the loop --------------------------------------------------------------------

    def step(self) -> bool:
        """One turn; False when there was nothing to do (and nothing is in flight)."""
        self._clock.turn()
        if not (had_inflight := bool(self._inflight)):
            self._committed = None
        self._expire()
        drafting, following = self._planner.drafting(), None
        if had_inflight and self._commits_first(drafting):
            following = self._planner.following(self._inflight[0][0]) if drafting else None
            if following is None:
                self._commit_oldest()
        start = self._clock.read()
        plan = self._plan(drafting, following)
        self.stats.plan_s += self._clock.read() - start
        host_reads = plan is not None and plan.host_reads
        masked = plan is not None and bool(self._planner.constrained) and _has_matchers(plan)
        free = plan is not None and not host_reads and not masked
        late = bool(self._inflight)
        start = self._clock.read()
        pending = None
        if plan is not None:  # where there are guesses, the next turn begins with this step's ids
            known = free and (drafting or plan.guesses > 0)
            pending = self._worker.forward(plan.batch, awaited=known)
            plan.queued = time.perf_counter()
            if free:  # nothing of N is needed: the device has no reason to wait
                self._worker.sample(pending, None)
        self.stats.launch_s += self._clock.read() - start
        while self._inflight:
            self._commit_oldest()
        if plan is not None and pending is not None:
            if host_reads:
                learn_early(plan, pending, self._drafts, self._committer.broke)
            if not free:  # what its rows may take is made while the worker computes
                start = self._clock.read()
                mask = self._mask(plan)
                self.stats.mask_s += (made := self._clock.read()) - start
                self._worker.sample(pending, mask)
                self.stats.launch_s += self._clock.read() - made
            self._inflight.append((plan, pending))
            self.stats.steps += 1
            self.stats.step_tokens += plan.batch.num_tokens
            if not self._settings.overlap:
                self._commit_oldest()
        self._turned(overlapped=late)
        return plan is not None or had_inflight

    def _commits_first(self, drafting: bool) -> bool:
        """Whether the step in flight must be known before the next is planned."""
        if drafting or self._inflight[0][0].guesses:
            return True
        return self._planner.constrained > 0 and (self._overlap is None or not self._overlap.due())

    def _turned(self, *, overlapped: bool) -> None:
        """The end of a turn: if constrained rows were part of it, measure what it took; steps with
        guesses take other times."""
        if self._overlap is None:
            return
        now, idle, before = time.perf_counter(), self._idle_s, self._turn_end
        counts = bool(self._planner.constrained and self._inflight)
        counts = counts and not self._inflight[-1][0].guesses
        self._turn_end = now if counts else None, idle
        if before[0] is not None and self._turn_end[0] is not None:
            turn = now - before[0]
            busy = turn - (idle - before[1])
            self._overlap.measured(turn, busy, self._step_s, overlapped=overlapped)

    def audit(self) -> int:
        """While idle: check memory, make what constrained requests will need.

        Returns:
            breaches found (and mended).
        """
        self._grammars.prepare()
        found = len(self.cache.audit()) if not self._planner.running else 0
        self.stats.audit_repairs += found
        return found

    def fail_all(self, error: BranchlineError) -> None:
        """End every request (the loop is stopping, or cannot go on)."""
        while self._inflight:
            plan, _ = self._inflight.popleft()
            self._committer.fail(plan, error)
        for request in [*self._planner.running, *self._requests.values()]:
            request.inflight = 0  # steps that were planned and never handed over will not come back
            if request.finish is None:
                self.waiting.remove(request)
                self._committer.end(request, "error", error=error)
            else:
                self._committer.leave_if_idle(request)

    def _plan(self, drafting: bool, following: dict[Request, Draft] | None) -> StepPlan | None:
        draft = drafting and not self._inflight
        segments, inits = self._planner.plan(draft=draft, following=following)
        if not segments:
            return None
        copies = self._planner.take_copies()
        try:
            plan = self._builder.build(segments, inits, copies)
        except Exception as error:
            self._withdraw(segments, copies, error)
            return self._plan(drafting, None)
        if self._drafts is not None:
            plan.waited, plan.decision = draft, self._drafts.decision
        return plan

    def _matchers(self, plan: StepPlan) -> list[MaskSource]:
        """Where the mask of each sampled place begins; an id that is known already stands for
        itself alone."""
        found: list[MaskSource] = []
        for segment in plan.segments:
            if segment.sample:
                known = segment.forced_id
                found.append(self._masked(segment.request) if known is None else known)
                if segment.draft is not None:
                    found.extend(segment.draft.matchers[1:])
        return found

    def _masked(self, request: Request) -> TokenMatcher | None:
        """The matcher whose mask the request's next id must obey; None where every id may come.

        Where the output is complete as it stands there is no mask: the model goes on with it, or
        shows by any other id that it would not, and the output ends there (`Committer`). A mask
        would leave it the choice between going on and an end-of-sequence id, which it rarely means:
        "4 legs" would become "4000".
        """
        matcher = request.matcher
        if matcher is None or request.finish is not None:
            return None
        try:
            complete = request.output_len >= request.sampling.min_tokens and matcher.is_accepting()
        except Exception as error:
            self._committer.broke(request, error)
            return None
        return None if complete else matcher

    def _mask(self, plan: StepPlan) -> Bitmask | None:
        """What each sampled place may take, None when nothing is forbidden; where that cannot be
        said, every request that needs it has ended."""
        matchers = self._matchers(plan)
        if all(matcher is None for matcher in matchers):
            return None
        try:
            return self._grammars.fill(matchers, len(matchers))
        except Exception as error:
            for request in _sampled(plan):
                if request.matcher is not None:
                    self._committer.broke(request, error)
            return None

    def _commit_oldest(self) -> None:
        plan, pending = self._inflight.popleft()
        start = time.perf_counter()
        try:
            output = pending.result()
        except Exception as error:
            logger.exception("a step of %d requests failed", len(plan.segments))
            failure = BackendError(
                f"the step failed: {type(error).__name__}: {error}",
                retryable=True,
                hint="The request was ended; others go on.",
            )
            self._committer.fail(plan, failure)
            return
        ready = time.perf_counter()
        self.stats.wait_s += ready - start
        self._idle_s += ready - start
        self._step_s = ready - plan.queued
        begin = self._clock.read()
        self._committer.commit(plan, output)
        if self._drafts is not None:
            now = time.perf_counter()
            if self._committed is not None and plan.steady:
                self._drafts.stepped(
                    len(plan.segments),
                    plan.guesses,
                    now - self._committed,
                    waited=plan.waited,
                    decision=plan.decision,
                )
            self._committed = now
        self.stats.commit_s += self._clock.read() - begin

    def _withdraw(
        self, segments: list[Segment], copies: tuple[Slots, Slots] | None, error: Exception
    ) -> None:
        """A step could not be put together: end the requests whose own part of it fails, and have
        the others start over with what they have. Where nobody is to blame, raise `error`.
        """
        found = [(s.request, why) for s in segments if (why := self._builder.failure_of(s))]
        if not found:
            raise error
        while self._inflight:
            self._commit_oldest()
        self._planner.withdraw(segments, copies)
        for request, why in found:
            self._committer.broke(request, why)
        for segment in segments:
            if segment.request.finish is not None:
                self._committer.leave_if_idle(segment.request)
        self._planner.start_over()

    def _admit_or_compile(self, request: Request) -> None:
        constraint = request.sampling.constraint
        if constraint is None:
            self.waiting.add(request)
            return

        def ready(result: TokenMatcher | BranchlineError) -> None:
            if request.finish is not None:
                return
            if isinstance(result, BranchlineError):
                self._committer.end(request, "error", error=result)
            else:
                request.matcher = result
                request.progress.grammar = self._grammars.explain(constraint)
                if self._committer.begin(request):
                    self.waiting.add(request)

        self._grammars.request(
            constraint,
            lambda result: self._call_soon(lambda: ready(result)),
            request.sampling.section,
        )

    def _adapter_failed(self, version: AdapterVersion, error: BranchlineError) -> None:
        """End what waits for a version that cannot be had."""
        for request in list(self._requests.values()):
            if request.adapter is version and request.finish is None:
                self.waiting.remove(request)
                self._committer.end(request, "error", error=error)

    def _end(self, request: Request, reason: FinishReason) -> None:
        if request.finish is None:
            self.waiting.remove(request)
            self._committer.end(request, reason)

    def _expire(self) -> None:
        now = time.monotonic()
        while self._deadlines and self._deadlines[0][0] <= now:
            _, request_id = heapq.heappop(self._deadlines)
            request = self._requests.get(request_id)
            if request is not None:
                self._end(request, "deadline")
        if len(self._deadlines) > 2 * len(self._requests) + 64:
            self._deadlines = [item for item in self._deadlines if item[1] in self._requests]
            heapq.heapify(self._deadlines)


def _sampled(plan: StepPlan) -> list[Request]:
    """The requests that get an id in a step, in the order of their rows."""
    return [plan.segments[index].request for index in plan.batch.sample_rows.tolist()]


def _has_matchers(plan: StepPlan) -> bool:
    return any(request.matcher is not None for request in _sampled(plan))


def _suppress_ids(eos_ids: frozenset[int]) -> Callable[[Request], tuple[int, ...]]:
    model_end = tuple(sorted(eos_ids))

    def suppress(request: Request) -> tuple[int, ...]:
        if request.sampling.min_tokens == 0:
            return ()
        return model_end + request.sampling.stop_token_ids

    return suppress
