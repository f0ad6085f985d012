"""What a step has read of requests that generate nothing, or of their prompts, into their records.

Knows nothing of how a request ends; it is told whom to call.
"""

from __future__ import annotations

import time
from typing import Protocol

import numpy as np

from branchline.runtime.core.batch import TopLogprobs
from branchline.runtime.core.outputs import FinishReason, TokenLogprob
from branchline.runtime.core.pooling import HiddenStates
from branchline.runtime.core.request import Request
from branchline.runtime.errors import BackendError, BranchlineError
from branchline.runtime.scheduler.plan_builder import Segment


class End(Protocol):
    """Ends a request (`Committer.end`)."""

    def __call__(
        self, request: Request, reason: FinishReason, *, error: BranchlineError | None = None
    ) -> None: ...


def read_scores(segment: Segment, scores: TopLogprobs, start: int, count: int, end: End) -> None:
    """Note log-probabilities of a segment: of its prompt's tokens, or of choices behind it.

    Args:
        scores: of the step; the segment's are `[start, start + count)`.
    """
    request = segment.request
    if segment.group is None:
        known = len(request.progress.prompt_logprobs)
        top_k = request.sampling.prompt_logprobs or 0
        tokens = request.ids[segment.start + 1 : segment.start + 1 + count].tolist()
        for offset, token in enumerate(tokens):
            if segment.start + offset >= known:
                found = logprob_entry(token, scores, start + offset, top_k)
                request.progress.prompt_logprobs.append(found)
        return
    assert request.score is not None
    values = scores.chosen[start : start + count]
    if not bool(np.isfinite(values).all()):
        error = BackendError("the model gave no usable log-probabilities for the choices")
        end(request, "error", error=error)
        return
    for choice, reads in segment.group.choices:
        request.score.results[choice] = [float(values[read]) for read in reads]
    if request.times.first_token == 0.0:
        request.times.first_token = time.monotonic()
    if request.score.complete:
        end(request, "stop")
    else:
        request.planned_len = request.length - 1


def pool_states(segment: Segment, states: HiddenStates, end: End) -> None:
    """Add hidden states of a segment to its request's pool.

    Args:
        states: float32 [n, hidden], of its last n tokens.
    """
    request = segment.request
    assert request.pool is not None
    if not bool(np.isfinite(states).all()):
        error = BackendError(
            "the model gave no usable hidden states (NaN or infinite)",
            hint="Only this request was ended. Check the weights.",
        )
        end(request, "error", error=error)
        return
    request.pool.add(states)
    if segment.start + segment.count == request.prompt_len:
        request.times.first_token = time.monotonic()
        end(request, "stop")


def logprob_entry(token: int, read: TopLogprobs, row: int, top_k: int) -> TokenLogprob:
    """What was read at one place, for the reader: the token's own, and `top_k` others at most."""
    ids = read.top_ids[row].tolist()[:top_k]
    values = read.top_values[row].tolist()[:top_k]
    return TokenLogprob(token, float(read.chosen[row]), tuple(zip(ids, values, strict=True)))
