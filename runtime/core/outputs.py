"""What the engine says about a request, step by step. Text and ids; no device data."""

from __future__ import annotations

from typing import Literal

import msgspec

FinishReason = Literal["stop", "length", "constraint", "abort", "deadline", "error"]


class TokenLogprob(msgspec.Struct, frozen=True):
    """Log-probability (natural log) of one token, and of the k most likely ones in its place.

    Attributes:
        token_id: the token taken.
        logprob: its log-probability under the model's own distribution (temperature 1, unmasked).
        top: (token id, log-probability), best first.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class RequestMeta(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Counts and times of one finished request (`s.meta(name)` shows them).

    Attributes:
        matched: what ended it where the reason is "stop": the text that a stop rule found, or the
            end id; None where nothing in particular did.
        prompt_tokens: tokens before the first generated one.
        cached_tokens: of those, how many were found in the prefix cache.
        output_tokens: tokens kept as output.
        forced_tokens: of those, how many a grammar forced without a sampling decision.
        drafted_tokens, accepted_tokens: proposed by a drafter, and kept.
        forwards: model forwards the request took part in.
        ttft_s, latency_s: from submission to first token, to the end; seconds.
        queue_s: from submission to admission; seconds.
        grammar: who enforced the constraint and why, "" without one (of a program's `meta`, too).
    """

    finish_reason: FinishReason = "stop"
    matched: str | int | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    forced_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    forwards: int = 0
    retractions: int = 0
    ttft_s: float = 0.0
    latency_s: float = 0.0
    queue_s: float = 0.0
    seed: int | None = None
    model: str = ""
    adapter: str = ""
    grammar: str = ""


class GenerateDelta(msgspec.Struct, kw_only=True, tag=True):
    """New output of one sequence since the last delta.

    Attributes:
        request_id: whose.
        text: new text; safe to show (complete characters, nothing that a stop could cut).
        token_ids: new ids; they come with or after the end of their text, once no stop can cut
            them, so that all deltas together bring the ids of the result.
        logprobs: one entry for each of these ids, when asked for.
        forced: see `GenerateResult`; those among these ids.
    """

    request_id: str
    text: str
    token_ids: list[int] = []
    logprobs: list[TokenLogprob] = []
    forced: list[int] = []


class GenerateResult(msgspec.Struct, kw_only=True, tag=True):
    """The end of one sequence.

    Attributes:
        text: the whole output; the stop string is part of it only with `keep_stop`.
        token_ids: ids whose text is exactly `text` (ids as generated; a token cut by a stop
            string is replaced by the tokens of its kept part). End-of-sequence ids are left out.
        logprobs: one entry for each generated id kept, when asked for.
        prompt_logprobs: one entry for each prompt token but the first, when asked for.
        forced: positions in the output, counted from 0, of ids that the constraint left no choice
            about. Without log-probabilities none of them took a sampling decision; with them, each
            did (`meta.forced_tokens` counts the former), and the positions are the same.
        error: wire form of the error that ended it (see `runtime.errors.to_wire`), if one did.
    """

    request_id: str
    text: str
    token_ids: list[int]
    meta: RequestMeta
    logprobs: list[TokenLogprob] = []
    prompt_logprobs: list[TokenLogprob] = []
    forced: list[int] = []
    error: dict[str, str | bool] | None = None


class ScoreResult(msgspec.Struct, kw_only=True, tag=True):
    """Log-probabilities of the tokens of each choice after one prompt.

    Attributes:
        token_logprobs: for each choice, one value (natural log) for each of its tokens; some are
            missing where `error` says why (an abort does, too).
    """

    request_id: str
    token_logprobs: list[list[float]]
    meta: RequestMeta
    error: dict[str, str | bool] | None = None


class EmbedResult(msgspec.Struct, kw_only=True, tag=True):
    """The vector of one prompt.

    Attributes:
        embedding: float32 values; empty where `error` says why there is none (an abort does, too).
    """

    request_id: str
    embedding: list[float]
    meta: RequestMeta
    error: dict[str, str | bool] | None = None


Output = GenerateDelta | GenerateResult | ScoreResult | EmbedResult
