"""What the scheduler says to whoever turns ids into text, sequence by sequence.

Invariant: for each sequence one `SequenceOpen`, then any number of `SequenceTokens`, then one
`SequenceEnd`; the ids of all of them, joined, are the output's ids. The same records are handed
over in one process and sent between two. Needs neither numpy nor torch.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from typing import TYPE_CHECKING, Any

import msgspec

from branchline.runtime.core.messages import EmbedRequest, EngineRequest, GenerateRequest
from branchline.runtime.core.outputs import (
    EmbedResult,
    FinishReason,
    GenerateResult,
    RequestMeta,
    ScoreResult,
    TokenLogprob,
)
from branchline.runtime.core.section import Section
from branchline.runtime.errors import BranchlineError, Cancelled, DeadlineExceeded

if TYPE_CHECKING:
    from branchline.runtime.core.request import Request


class SequenceOpen(msgspec.Struct, kw_only=True, tag=True, frozen=True):
    """A sequence will come; how its text is read.

    Attributes:
        stream: its reader wants the text piece by piece.
        stop, stop_regex: what in the text ends it.
        keep_stop: that text is part of it.
        min_tokens: stops that are complete within this many tokens do not count.
        section: stops count behind it only.
        skip_special_tokens: leave the text of special tokens out.
    """

    request_id: str
    stream: bool = False
    stop: tuple[str, ...] = ()
    stop_regex: str | None = None
    keep_stop: bool = False
    min_tokens: int = 0
    section: Section | None = None
    skip_special_tokens: bool = True

    @property
    def needs_text(self) -> bool:
        """Whether its text matters before its end; else all ids come with the end."""
        return self.stream or bool(self.stop) or self.stop_regex is not None


class SequenceTokens(msgspec.Struct, kw_only=True, tag=True):
    """New ids of a sequence; `logprobs` has one entry for each, or none.

    Attributes:
        forced: see `GenerateResult`; those among these ids.
    """

    request_id: str
    token_ids: list[int]
    logprobs: list[TokenLogprob] = []
    forced: list[int] = []


class SequenceEnd(msgspec.Struct, kw_only=True, tag=True):
    """A sequence has ended.

    Attributes:
        token_ids, logprobs, forced: what no `SequenceTokens` has carried.
        meta: all but `output_tokens`, which the text decides.
        error: wire form of what ended it, if something did.
    """

    request_id: str
    token_ids: list[int]
    meta: RequestMeta
    logprobs: list[TokenLogprob] = []
    prompt_logprobs: list[TokenLogprob] = []
    forced: list[int] = []
    error: dict[str, Any] | None = None


def openings(source: GenerateRequest) -> list[SequenceOpen]:
    """One record for each output that `source` wants."""
    sampling = source.sampling
    return [
        SequenceOpen(
            request_id=name,
            stream=source.stream,
            stop=sampling.stop,
            stop_regex=sampling.stop_regex,
            keep_stop=sampling.keep_stop,
            min_tokens=sampling.min_tokens,
            section=sampling.section,
            skip_special_tokens=sampling.skip_special_tokens,
        )
        for name in names_of(source)
    ]


def tokens_since(request: Request, shown: int) -> SequenceTokens:
    """The output of `request` from its id number `shown` on."""
    ids: list[int] = request.ids[request.prompt_len + shown : request.length].tolist()
    found = request.progress.logprobs
    logprobs = found[shown : shown + len(ids)] if found else []
    marks = request.progress.forced
    forced = marks[bisect_left(marks, shown) :] if marks else []
    return SequenceTokens(request_id=request.id, token_ids=ids, logprobs=logprobs, forced=forced)


def end_of(request: Request, shown: int, model_name: str) -> SequenceEnd:
    """The end of a `request` of whose output `shown` ids have been told."""
    rest = tokens_since(request, shown)
    return SequenceEnd(
        request_id=request.id,
        token_ids=rest.token_ids,
        meta=_meta(request, model_name),
        logprobs=rest.logprobs,
        prompt_logprobs=request.progress.prompt_logprobs,
        forced=rest.forced,
        error=_error(request),
    )


def reading_of(request: Request, model_name: str) -> ScoreResult | EmbedResult:
    """The result of a request that generates nothing, and so has no text."""
    meta, error = _meta(request, model_name), _error(request)
    if request.finish == "abort":
        error = aborted().to_wire()
    if request.score is not None:
        scores = request.score.results
        return ScoreResult(request_id=request.id, token_logprobs=scores, meta=meta, error=error)
    return EmbedResult(request_id=request.id, embedding=_embedding(request), meta=meta, error=error)


def deadline_passed() -> DeadlineExceeded:
    """What a request that ended by its deadline says."""
    return DeadlineExceeded(
        "the deadline passed before the output was complete", hint="Raise deadline_s."
    )


def aborted() -> Cancelled:
    """What a request says that was aborted and of which no part is a result."""
    return Cancelled("the request was aborted before its result was complete")


def never_run(
    request: EngineRequest, name: str, reason: FinishReason, error: BranchlineError | None
) -> GenerateResult | ScoreResult | EmbedResult:
    """The final output of sequence `name` of a request that the scheduler has no record of."""
    meta = RequestMeta(
        finish_reason=reason, prompt_tokens=len(request.prompt_ids), adapter=request.adapter
    )
    wire = None if error is None else error.to_wire()
    if isinstance(request, GenerateRequest):
        return GenerateResult(request_id=name, text="", token_ids=[], meta=meta, error=wire)
    if reason == "abort":
        wire = aborted().to_wire()
    if isinstance(request, EmbedRequest):
        return EmbedResult(request_id=name, embedding=[], meta=meta, error=wire)
    scores: list[list[float]] = [[] for _ in request.choices]
    return ScoreResult(request_id=name, token_logprobs=scores, meta=meta, error=wire)


def sequence_names(request_id: str, count: int) -> list[str]:
    """Ids of a request's sequences: `id`, `id#1`, …"""
    return [request_id, *(f"{request_id}#{index}" for index in range(1, count))]


def names_of(request: EngineRequest) -> list[str]:
    """Ids of the sequences that `request` asks for."""
    count = request.sampling.n if isinstance(request, GenerateRequest) else 1
    return sequence_names(request.id, count)


def _embedding(request: Request) -> list[float]:
    source = request.source
    assert request.pool is not None and isinstance(source, EmbedRequest)
    if request.finish != "stop":
        return []
    vector = request.pool.vector(dimensions=source.dimensions, normalize=source.normalize)
    values: list[float] = vector.tolist()
    return values


def _meta(request: Request, model_name: str) -> RequestMeta:
    times, progress = request.times, request.progress
    end = times.finished or time.monotonic()
    reason: FinishReason = request.finish or "error"
    return RequestMeta(
        finish_reason=reason,
        matched=progress.end_id,
        prompt_tokens=request.prompt_len,
        cached_tokens=min(progress.cached_tokens, request.prompt_len),
        forced_tokens=progress.forced_tokens,
        drafted_tokens=progress.drafted_tokens,
        accepted_tokens=progress.accepted_tokens,
        forwards=progress.forwards,
        retractions=progress.retractions,
        grammar=progress.grammar,
        ttft_s=(times.first_token or end) - times.created,
        latency_s=end - times.created,
        queue_s=(times.admitted or end) - times.created,
        seed=request.seed if request.generates else None,
        model=model_name,
        adapter=request.source.adapter,
    )


def _error(request: Request) -> dict[str, Any] | None:
    error: BranchlineError | None = request.progress.error
    if error is None and request.finish == "deadline":
        error = deadline_passed()
    return None if error is None else error.to_wire()
