"""What a request may ask for, checked before anything is made of it. Needs neither numpy nor torch.

Invariant: the same request is refused by the same error wherever it is looked at first, in the
scheduler itself or in a process that sends requests to one.
"""

from __future__ import annotations

import time
from math import isfinite
from typing import get_args

import msgspec

from branchline.runtime.core.messages import EmbedRequest, EngineRequest, Pooling, ScoreRequest
from branchline.runtime.core.sampling_params import SamplingParams
from branchline.runtime.errors import InvalidRequest, QueueFull

MAX_CHOICES = 10_000
MAX_PRIORITY = 2**31 - 1


class Bounds(msgspec.Struct, frozen=True):
    """Limits of one engine.

    Attributes:
        vocab_size: ids are in [0, vocab_size).
        max_context: tokens of a sequence at most (model and memory).
        max_tree: candidates of one tree forward at most.
        embedding_size: numbers of a hidden state.
    """

    vocab_size: int
    max_context: int
    max_tree: int
    embedding_size: int

    def check(self, source: EngineRequest, extremes: tuple[int, int] | None = None) -> None:
        """Raise `InvalidRequest` naming the value that cannot be run, and what to do.

        Args:
            extremes: the smallest and the largest id of the prompt, where they are known.
        """
        _check_schedule(source.priority, source.deadline)
        ids = source.prompt_ids
        if not ids:
            raise InvalidRequest("the prompt is empty", hint="Give at least one token.")
        if len(ids) >= self.max_context:
            raise InvalidRequest(
                f"the prompt has {len(ids)} tokens, but a sequence holds {self.max_context}",
                value=f"{len(ids)} tokens",
                hint="Shorten the prompt, or raise context_length or kv_tokens.",
            )
        self._check_extremes(*(extremes or (min(ids), max(ids))), "the prompt")
        if isinstance(source, ScoreRequest):
            self._check_choices(source)
        elif isinstance(source, EmbedRequest):
            self._check_embedding(source)
        else:
            check_token_ids(source.sampling.validate(), self.vocab_size)

    def choice_limit(self, source: ScoreRequest) -> int:
        """Tokens of one choice at most."""
        return min(self.max_tree, self.max_context - len(source.prompt_ids))

    def _check_choices(self, source: ScoreRequest) -> None:
        limit = self.choice_limit(source)
        if not source.choices:
            raise InvalidRequest("there are no choices", hint="Give at least one choice.")
        if len(source.choices) > MAX_CHOICES:
            raise InvalidRequest(
                "too many choices", value=len(source.choices), hint=f"At most {MAX_CHOICES}."
            )
        for choice in source.choices:
            if not choice:
                raise InvalidRequest("a choice is empty", hint="Every choice needs some text.")
            if len(choice) > limit:
                raise InvalidRequest(
                    f"a choice has {len(choice)} tokens, at most {limit} can be scored here",
                    value=f"{len(choice)} tokens",
                    hint="Shorten the choice or the prompt, or raise max_step_tokens.",
                )
            self._check_extremes(min(choice), max(choice), "a choice")

    def _check_embedding(self, source: EmbedRequest) -> None:
        known = get_args(Pooling)
        if source.pooling not in known:
            raise InvalidRequest(
                "unknown pooling", value=source.pooling, hint=f"Known: {', '.join(known)}."
            )
        if source.dimensions is not None and not 1 <= source.dimensions <= self.embedding_size:
            raise InvalidRequest(
                "the model's embeddings do not have that many dimensions",
                value=source.dimensions,
                hint=f"Use 1 to {self.embedding_size}, or leave dimensions out.",
            )

    def _check_extremes(self, low: int, high: int, what: str) -> None:
        if low < 0 or high >= self.vocab_size:
            raise InvalidRequest(
                f"{what} has a token id outside the vocabulary",
                value=low if low < 0 else high,
                hint=f"Ids are 0 to {self.vocab_size - 1}.",
            )


def _check_schedule(priority: object, deadline: object) -> None:
    """The queues compare both; one that cannot be compared would end every request."""
    if type(priority) is not int or abs(priority) > MAX_PRIORITY:
        raise InvalidRequest(
            "priority is no whole number that fits 32 bits", value=priority, hint="Use 0, or 1, …"
        )
    if deadline is not None and not (isinstance(deadline, float | int) and isfinite(deadline)):
        raise InvalidRequest(
            "deadline is no moment in time", value=deadline, hint="Use a number, or None."
        )


def check_token_ids(params: SamplingParams, vocab_size: int) -> None:
    """Raise `InvalidRequest` when a bias or a stop id is not a token of the model.

    The sampler relies on it: call it when a request is admitted.
    """
    for name, ids in (
        ("logit_bias", tuple(params.logit_bias or ())),
        ("stop_token_ids", params.stop_token_ids),
    ):
        for token in ids:
            if not 0 <= token < vocab_size:
                raise InvalidRequest(
                    f"{name} names a token that the model does not have",
                    value=token,
                    hint=f"Use ids from 0 to {vocab_size - 1}.",
                )
    for token, value in (params.logit_bias or {}).items():
        if not abs(value) <= 100.0:
            raise InvalidRequest(
                f"logit_bias of token {token} is out of range",
                value=value,
                hint="Use -100 to 100 (-100 all but bans a token).",
            )


def check_queue(unfinished: int, limit: int) -> None:
    """Raise `QueueFull` when `unfinished` sequences wait or run already and `limit` may."""
    if unfinished >= limit:
        raise QueueFull(
            f"{unfinished} requests wait or run already",
            hint="Try again later, or raise max_queued_requests.",
        )


def remaining(deadline: float | None, default_s: float | None) -> float | None:
    """The earlier of a request's own deadline and the default, as `time.monotonic()`."""
    if default_s is None:
        return deadline
    default = time.monotonic() + default_s
    return default if deadline is None else min(deadline, default)
