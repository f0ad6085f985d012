"""Takes a finished step back: new ids, stop rules, log-probabilities, endings.

Law: whatever goes wrong with one request ends that request with a typed error and leaves the others
as they are. Knows nothing of how steps are chosen; text is the outbox's business.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from branchline.runtime.core.batch import ForwardOutput, TopLogprobs
from branchline.runtime.core.outputs import FinishReason, TokenLogprob
from branchline.runtime.core.protocols import TokenMatcher
from branchline.runtime.core.request import Request, Status
from branchline.runtime.errors import BackendError, BranchlineError
from branchline.runtime.scheduler.constrained_overlap import ConstrainedOverlap
from branchline.runtime.scheduler.draft import Draft
from branchline.runtime.scheduler.plan_builder import Segment, StepPlan
from branchline.runtime.scheduler.planner import Planner
from branchline.runtime.scheduler.proposals import learn, tell
from branchline.runtime.scheduler.readouts import logprob_entry, pool_states, read_scores
from branchline.runtime.scheduler.stats import SchedulerStats

logger = logging.getLogger(__name__)


class Outbox(Protocol):
    """Where results go; called on the loop thread."""

    def started(self, request: Request) -> None:
        """`request` is part of a step for the first time."""

    def push(self, request: Request) -> bool:
        """Ids were added to `request`; True when its text now ends by a stop string."""

    def finish(self, request: Request) -> None:
        """`request` has ended; called exactly once for each."""

    def quiet(self, request: Request) -> bool:
        """Whether `push` does nothing for `request`, and never will."""


class _Sampled(NamedTuple):
    """What was sampled in a step: an id for each place, which of them are none, and readings."""

    ids: list[int]
    bad: set[int]
    logprobs: TopLogprobs | None


class Committer:
    """Applies step results to requests.

    Args:
        eos_ids: ids that end any output unless `ignore_eos`.
        grammar_failure: why a matcher can go no further; "" = it can.
        overlap: told how often ids of constrained rows force others.
    """

    def __init__(
        self,
        planner: Planner,
        outbox: Outbox,
        stats: SchedulerStats,
        eos_ids: frozenset[int],
        grammar_failure: Callable[[TokenMatcher], str],
        overlap: ConstrainedOverlap | None = None,
    ) -> None:
        self._grammar_failure, self._overlap = grammar_failure, overlap
        self._planner = planner
        self._outbox = outbox
        self._stats = stats
        self._eos_ids = eos_ids

    def commit(self, plan: StepPlan, output: ForwardOutput) -> None:
        """Apply one step. Requests that ended meanwhile are passed over."""
        learn(plan, output.trees, self._planner.drafts, self.broke)
        tell(plan, output.matched, self._planner.drafts)
        for segment in plan.segments:
            request = segment.request
            request.inflight -= 1
            request.progress.forwards += 1
            if request.finish is None:
                if segment.draft is not None and segment.draft.follows:
                    segment.start = request.computed_len  # where the step before has ended
                request.computed_len = segment.start + segment.count
            else:
                self.leave_if_idle(request)
        for span in plan.spans:
            segment = plan.segments[span.segment]
            if segment.request.finish is None and output.scores is not None:
                read_scores(segment, output.scores, span.start, span.count, self.end)
        for span in plan.hidden_spans:
            segment = plan.segments[span.segment]
            if segment.request.finish is None and output.hidden is not None:
                states = output.hidden[span.start : span.start + span.count]
                pool_states(segment, states, self.end)
        for segment in plan.segments[plan.plain :]:
            request = segment.request
            if segment.count > 1 and segment.start < request.prompt_len and request.finish is None:
                self._planner.share(request, _shareable(request))
        self._sampled(plan, output)

    def _sampled(self, plan: StepPlan, output: ForwardOutput) -> None:
        sampled = _Sampled(output.token_ids[:, 0].tolist(), set(output.bad_rows), output.logprobs)
        segments, rows = plan.segments, plan.batch.sample_rows.tolist()
        for j in self._plain(segments[: plan.plain], sampled):
            self._take(segments[j], sampled, j)
        for j in range(plan.plain, len(rows)):
            if rows[j - 1] != rows[j] or j == 0:
                self._take(segments[rows[j]], sampled, j)

    def _plain(self, segments: list[Segment], sampled: _Sampled) -> list[int]:
        """Append the ids of which nobody needs to hear; the places of all others."""
        rest: list[int] = []
        eos_ids, bad = self._eos_ids, sampled.bad
        for j, (segment, token) in enumerate(zip(segments, sampled.ids, strict=False)):
            request = segment.request
            length = request.length
            if (
                not request.quiet
                or length + 1 >= min(request.max_len, len(request.ids))
                or (token in eos_ids and not request.sampling.ignore_eos)
                or (bad and j in bad)
            ):
                rest.append(j)
            else:
                request.ids[length] = token
                request.length = length + 1
        self._stats.sampled_tokens += len(segments) - len(rest)
        return rest

    def _take(self, segment: Segment, sampled: _Sampled, j: int) -> None:
        """Take what was sampled for a segment, at places j and following."""
        request = segment.request
        if request.finish is not None:
            return
        try:
            if segment.draft is not None:
                self._path(segment, segment.draft, sampled, j)
            elif segment.forced_id is not None and j not in sampled.bad:
                pass  # it was all that the mask allowed
            elif request.sampling.logprobs is None:
                self._bare(request, sampled, j)
            else:
                self._place(request, sampled, j)
        except Exception as error:
            self.broke(request, error)

    def _bare(self, request: Request, sampled: _Sampled, j: int) -> None:
        """`_place` for a request of which nothing but its id is wanted, as most of a step are."""
        token, sampling = sampled.ids[j], request.sampling
        if (
            j in sampled.bad
            or (token in self._eos_ids and not sampling.ignore_eos)
            or token in sampling.stop_token_ids
            or request.times.first_token == 0.0
        ):
            self._place(request, sampled, j)
            return
        matcher = request.matcher
        if matcher is not None and not matcher.accept(token):
            self._refused(request, token)
            return
        request.append(token)
        self._stats.sampled_tokens += 1
        if matcher is not None:
            self._grown(request)
        elif self._outbox.push(request):
            self.end(request, "stop")
        elif request.length >= request.max_len:
            self.end(request, "length")

    def _place(self, request: Request, sampled: _Sampled, j: int) -> None:
        """Take the id of sampled place j."""
        if j in sampled.bad:
            self.end(request, "error", error=_no_token(request, self._grammar_failure))
        else:
            token = sampled.ids[j]
            self._token(request, token, _logprob(request, token, sampled.logprobs, j))

    def _path(self, segment: Segment, draft: Draft, sampled: _Sampled, first: int) -> None:
        """Take the ids of the places along the guesses that were right, and the one behind them.

        Their entries are the row's own before any id is taken: whatever ends the output on the
        way, what has been computed of it can be shared.
        """
        request, base = segment.request, segment.start + segment.count
        bad = {j - first for j in sampled.bad}
        path = draft.kept(sampled.ids[first : first + 1 + len(draft)], bad)
        self._planner.keep(request, base, path, in_place=draft.in_place)
        assert self._planner.drafts is not None, "somebody has guessed"
        self._planner.drafts.checked(request, draft, path)
        self._stats.drafts += 1
        self._stats.drafted_tokens += draft.guesses
        taken = _output_along(request, base, draft, path, 0)  # what was forced since the plan
        while request.finish is None and request.length == base + taken:
            place = path[taken - 1] + 1 if taken else 0
            self._place(request, sampled, first + place)
            taken = _output_along(request, base, draft, path, taken)  # one, or forced ones too
        request.sampled_len = request.length + request.inflight
        accepted = taken - len(draft.forced_nodes.intersection(path[:taken]))
        request.progress.accepted_tokens += accepted
        self._stats.accepted_tokens += accepted

    def fail(self, plan: StepPlan, error: BranchlineError) -> None:
        """The whole step failed: its requests end with `error`; nothing of it is cached."""
        for segment in plan.segments:
            segment.request.inflight -= 1
            if segment.request.finish is None:
                self.end(segment.request, "error", error=error)
            else:
                self.leave_if_idle(segment.request)

    def end(
        self, request: Request, reason: FinishReason, *, error: BranchlineError | None = None
    ) -> None:
        """End a request and free its memory: now, or when the step that it is part of is over.

        What it has computed is in the cache before the outbox hears of the end, so that whatever
        follows on it finds it.
        """
        request.finish = reason
        request.quiet = False
        request.progress.error = error
        request.status = Status.FINISHED
        request.times.finished = time.monotonic()
        if request.row >= 0 and request.inflight and reason != "error":
            self._planner.share(request, _shareable(request))
        self.leave_if_idle(request)
        if reason in ("abort", "deadline"):
            self._stats.aborted += 1
        elif reason == "error":
            self._stats.failed += 1
        else:
            self._stats.finished += 1
        if self._planner.drafts is not None:
            self._planner.drafts.finished(request)
        self._outbox.finish(request)

    def broke(self, request: Request, error: Exception) -> None:
        """Something that only this request needs raised: end it, if it has not ended."""
        logger.error("request %s broke", request.id, exc_info=error)
        if request.finish is None:
            why = f"the request broke: {type(error).__name__}: {error}"
            self.end(request, "error", error=BackendError(why, hint="Others go on."))

    def _token(self, request: Request, token_id: int, logprob: TokenLogprob | None) -> None:
        sampling = request.sampling
        if request.times.first_token == 0.0:
            request.times.first_token = time.monotonic()
            request.quiet = (
                request.matcher is None
                and sampling.logprobs is None
                and not sampling.stop_token_ids
                and self._outbox.quiet(request)
            )
        ended = (token_id in self._eos_ids and not sampling.ignore_eos) or (
            token_id in sampling.stop_token_ids
        )
        foretold = _foretold(request, token_id)
        if request.matcher is not None and not request.matcher.accept(token_id):
            self._refused(request, token_id)
            return
        if ended:
            request.progress.end_id = token_id
            request.sampled_len = request.length
            self.end(request, "stop")
            return
        if foretold:
            request.progress.forced.append(request.output_len)
        request.append(token_id)
        self._stats.sampled_tokens += 1
        if logprob is not None:
            request.progress.logprobs.append(logprob)
        self._grown(request)

    def _refused(self, request: Request, token_id: int) -> None:
        """The constraint does not allow an id: where it may end, the output ends before it."""
        assert request.matcher is not None, "there is a constraint"
        if request.matcher.is_accepting():
            request.sampled_len = request.length
            self.end(request, "constraint")
            return
        error = BackendError(
            "the constraint refused a token that its own mask allowed", value=token_id
        )
        self.end(request, "error", error=error)

    def force(self, request: Request) -> None:
        """Append what the constraint forces next, without a forward for each id.

        The ids run as part of the request's next step. They are the ones that constrained decoding
        would have taken (`TokenMatcher.forced_tokens`). Requests that want log-probabilities take
        every id the slow way, since each needs its own logits.
        """
        matcher = request.matcher
        if matcher is None or request.sampling.logprobs is not None:
            return
        taken = matcher.accept_forced(request.max_len - request.length)
        if not taken:
            return
        progress, first = request.progress, request.output_len
        for token_id in taken:
            request.append(token_id)
        progress.forced.extend(range(first, first + len(taken)))
        progress.forced_tokens += len(taken)
        self._stats.sampled_tokens += len(taken)
        request.sampled_len = max(request.sampled_len, request.length)

    def begin(self, request: Request) -> bool:
        """Before a constrained request waits: what is forced from the start, or its whole output;
        False when that has ended it."""
        try:
            self.force(request)
            if request.matcher is None or (
                request.output_len == 0 and not request.matcher.is_terminated()
            ):
                return True
            request.times.first_token = time.monotonic()
            self._check_end(request)
        except Exception as error:
            self.broke(request, error)
        return request.finish is None

    def _grown(self, request: Request) -> None:
        """An id was added: what it forces, and whether that ends the output."""
        before = request.length
        self.force(request)
        if self._overlap is not None and request.matcher is not None:
            self._overlap.took_token(forces=request.length > before)
        self._check_end(request)

    def _check_end(self, request: Request) -> None:
        stopped = self._outbox.push(request) if request.output_len else False
        if stopped:
            self.end(request, "stop")
        elif request.matcher is not None and request.matcher.is_terminated():
            self.end(request, "constraint")
        elif request.length >= request.max_len:
            self.end(request, "length")

    def leave_if_idle(self, request: Request) -> None:
        """Free an ended request's memory once no step has it any more."""
        if request.row >= 0 and request.inflight == 0:
            whole = request.finish != "error"
            computed = min(request.computed_len, request.length) if whole else 0
            self._planner.leave(request, computed, insert=whole)


def _output_along(
    request: Request, base: int, draft: Draft, path: Sequence[int], taken: int
) -> int:
    """How many guesses along a path from position `base` are output, of which `taken` are known to
    be."""
    while taken < len(path) and base + taken < request.length:
        if int(request.ids[base + taken]) != int(draft.tree.token_ids[path[taken]]):
            raise BackendError("a guess was kept that the output does not have")
        taken += 1
    return taken


def _no_token(request: Request, failure: Callable[[TokenMatcher], str]) -> BackendError:
    """Why nothing could be sampled, `failure` of its matcher among what is looked at."""
    why = "" if request.matcher is None else failure(request.matcher)
    if why:
        return BackendError(f"the constraint cannot go on: {why}", hint="Simplify it.")
    return BackendError(
        "the model gave no usable next token (NaN, or everything was masked)",
        hint="Only this request was ended. Check the weights or the constraint.",
    )


def _foretold(request: Request, token_id: int) -> bool:
    """Whether the constraint forced an id that was sampled for its log-probability alone."""
    if request.matcher is None or request.sampling.logprobs is None:
        return False
    return request.matcher.forced_tokens()[:1] == [token_id]


def _shareable(request: Request) -> int:
    """Tokens that others may use while `request` still runs. A score request runs its last prompt
    token again for each group of choices, so that one stays its own."""
    own = request.prompt_len - 1 if request.score is not None else request.length
    return min(request.computed_len, own)


def _logprob(
    request: Request, token: int, logprobs: TopLogprobs | None, row: int
) -> TokenLogprob | None:
    if request.sampling.logprobs is None or logprobs is None:
        return None
    return logprob_entry(token, logprobs, row, request.sampling.logprobs)
